"""Limits on request bodies, kept while they stream in: bytes, time and speed."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import BodyTooLargeError, DeadlineExceededError
from app.settings import Settings


class BodyLimitsMiddleware:
    """Hands a body on as long as it keeps within the limits, for every route alike.

    What it raises comes out where the route reads the body, and is answered like any other error.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self._settings, receive, _announced_bytes(scope))
        await self._app(scope, body.receive, send)


class _Body:
    """One request's body as it arrives."""

    def __init__(self, settings: Settings, receive: Receive, announced: int) -> None:
        self._settings = settings
        self._receive = receive
        self._announced = announced
        self._ended = False
        self._deadline_s = 0.0
        self._window_end_s = 0.0
        self._window_bytes = 0
        self._received = 0
        self._watching: asyncio.TimerHandle | None = None

    async def receive(self) -> Message:
        """Return the next message.

        Raises:
            BodyTooLargeError: More bytes than the limit, announced or arrived.
            DeadlineExceededError: The body takes too long, or comes too slowly.
        """
        if self._ended:
            return await self._receive()  # the client's hanging up, however late
        if max(self._announced, self._received) > self._settings.max_request_bytes:
            self._too_large()
        message = await self._next()
        if message["type"] == "http.request":
            self._ended = not message.get("more_body", False)
            self._received += len(message.get("body", b""))
            self._window_bytes += len(message.get("body", b""))
        if self._received > self._settings.max_request_bytes:
            self._too_large()
        return message

    async def _next(self) -> Message:
        loop = asyncio.get_running_loop()
        if not self._deadline_s:
            self._deadline_s = loop.time() + self._settings.upload_timeout_s
            self._open_window(loop.time())
        try:
            async with asyncio.timeout(None) as reading:
                self._watch(reading)
                message = await self._receive()
        except TimeoutError:
            self._check_clock(loop.time())
            raise
        finally:
            if self._watching is not None:
                self._watching.cancel()
        self._check_clock(loop.time())
        return message

    def _watch(self, reading: asyncio.Timeout) -> None:
        """Cut the reading short once it is too slow, and not before: a message that is cut off may be lost."""
        loop = asyncio.get_running_loop()
        if self._complaint(loop.time()) is None:
            self._watching = loop.call_at(min(self._deadline_s, self._window_end_s), self._watch, reading)
        else:
            reading.reschedule(loop.time())

    def _check_clock(self, now_s: float) -> None:
        complaint = self._complaint(now_s)
        if complaint is not None:
            raise DeadlineExceededError(complaint)

    def _complaint(self, now_s: float) -> str | None:
        """Compare what came in each window with what must come; a fast start buys no slow end."""
        if now_s >= self._deadline_s:
            return f"The request was not read within {self._settings.upload_timeout_s:g} s."
        if now_s < self._window_end_s:
            return None
        window_s, slowest = self._settings.request_timeout_s, self._settings.min_upload_bytes_per_s
        if self._window_bytes < max(1, slowest * window_s):
            return (
                f"Only {self._window_bytes:,} bytes of the request came in {window_s:g} s; "
                f"expected at least {slowest:,} a second."
            )
        self._open_window(now_s)
        return None

    def _open_window(self, now_s: float) -> None:
        self._window_end_s = now_s + self._settings.request_timeout_s
        self._window_bytes = 0

    def _too_large(self) -> None:
        raise BodyTooLargeError(f"The request has more than {self._settings.max_request_bytes:,} bytes.")


def _announced_bytes(scope: Scope) -> int:
    value = Headers(scope=scope).get("content-length", "")
    return int(value) if value.isdecimal() and len(value) < 20 else 0
