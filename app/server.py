"""Uvicorn, stopping in good order: readiness goes first, then the listener, then what is under way ends."""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

import uvicorn

_LOG: Final = logging.getLogger("leukoscope")
_LAST_WAIT_S: Final = 2.0


class Server(uvicorn.Server):
    """A server that tells the world that it will stop before it does.

    On the first SIGTERM or SIGINT it is announced at once; for `delay_s` all goes on, so that
    load balancers see it and send no more; then the listener closes and requests under way end.
    A second signal cuts the delay short. From the announcement on every answer is its connection's last,
    and who had connected when the listener closed is answered too.

    Attributes:
        gave_up: Whether it stopped because nothing but a restart can help.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        announce: Callable[[], None],
        *,
        delay_s: float = 0,
        hopeless: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make a server.

        Args:
            config: Of Uvicorn.
            announce: Makes it known that the service will stop.
            delay_s: Time between the announcement and the stop.
            hopeless: Asked ten times a second; once it is true the server stops.
        """
        super().__init__(config)
        self._delay_s = delay_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._announced = False
        self._hopeless = hopeless
        self.gave_up = False
        self._announce = announce
        self._listeners: list[socket.socket] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, as Uvicorn does."""
        self._loop = asyncio.get_running_loop()
        self._listeners = [listener.dup() for listener in sockets or []]
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, as Uvicorn does; but who has connected is answered, where the kernel would reset the connection."""
        self._make_answers_last()
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in [waiting for listener in self._listeners for waiting in self._close(listener)]:
            with suppress(OSError):  # the client may have gone again
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Look whether to stop, as Uvicorn does."""
        if not self.gave_up and self._hopeless():
            _LOG.critical("stopping, so that a supervisor starts this process anew")
            self.gave_up = self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal; called between two steps of the event loop's thread."""
        if self._announced or self._loop is None:
            super().handle_exit(sig, frame)
            return
        self._announced = True
        self._loop.call_soon_threadsafe(self._stop_soon, signal.Signals(sig))

    def _close(self, listener: socket.socket) -> list[socket.socket]:
        # Nothing is awaited between the last look and the closing: who comes later is refused, and not reset.
        waiting: list[socket.socket] = []
        with listener, suppress(OSError):  # that nobody waits any more, as a rule
            listener.setblocking(False)
            while len(waiting) < self.config.backlog:
                with suppress(ConnectionAbortedError):
                    waiting.append(listener.accept()[0])
        return waiting

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    def _make_answers_last(self) -> None:
        # Uvicorn renews the default headers each second from the configuration's.
        last = (b"connection", b"close")
        if last not in self.config.encoded_headers:
            self.config.encoded_headers.append(last)
            self.server_state.default_headers = [*self.server_state.default_headers, last]

    def _stop_soon(self, number: signal.Signals) -> None:
        self._announce()
        self._make_answers_last()
        assert self._loop is not None  # noqa: S101 - it is this loop that has called
        self._loop.call_later(self._delay_s, super().handle_exit, number, None)


def leave_stuck_threads() -> None:
    """End the process at once if a thread hangs, in the model or in a decoder, and would keep it from ending.

    Call it when all else is done.
    """
    deadline_s = time.monotonic() + _LAST_WAIT_S
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline_s - time.monotonic()))
    stuck = [thread.name for thread in others if thread.is_alive()]
    if stuck:
        _LOG.error("left behind, as they do not end: %s", ", ".join(stuck))
        logging.shutdown()
        os._exit(1)
