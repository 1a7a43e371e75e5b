"""HTTP's head under limits: Uvicorn bounds neither the bytes of headers nor the time in which they must come.

`limited_protocol` extends Uvicorn's own protocol class, which its `http` setting takes.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any, ClassVar, Final

from ulid import ULID
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.settings import Settings

# Most bytes that a client may spend on framing for each byte of a chunked body; one-byte chunks need 5.
_FRAMING_BYTES: Final = 16
# How long a request that was on its way when the listener closed may take to come.
_LAST_REQUEST_S: Final = 1.0


class LimitedProtocol(HttpToolsProtocol):
    """Cuts off a client whose headers are too long or too slow, or who never reads its answer.

    Chunk extensions and trailers count as headers: all that arrives and is no body.
    """

    header_timeout_s: ClassVar[float]
    max_header_bytes: ClassVar[int]
    linger_s: ClassVar[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - whatever Uvicorn passes
        super().__init__(*args, **kwargs)
        self._overhead_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._read_timer: asyncio.TimerHandle | None = None
        self._unanswered: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._head_arrived()
        self._client_read()
        # Uvicorn tells the newest only, and those before it would go on to write to what is closed.
        for cycle in self._unanswered:
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what arrives, then have it parsed."""
        if self.transport.is_closing():
            return
        if self._in_head:
            self._await_head()
        self._overhead_bytes += len(data)
        super().data_received(data)
        if self._overhead_bytes > self.max_header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {self.max_header_bytes} bytes of them")

    def on_headers_complete(self) -> None:
        """Stop the clock: the head is there."""
        self._in_head = False
        self._head_arrived()
        super().on_headers_complete()
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take the body, and the framing that it may need, off the count."""
        self._overhead_bytes = max(0, self._overhead_bytes - len(body) * (1 + _FRAMING_BYTES))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin a new count; what follows is the next head."""
        self._overhead_bytes = 0
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give a client that has hung up or does not read some time for the rest, then forget it."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.linger_s, self.transport.abort)

    def shutdown(self) -> None:
        """Do as Uvicorn does; but a client that waits for no answer may be about to send a last request."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LAST_REQUEST_S, super().shutdown)
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Do as Uvicorn does; but closing waits for the last bytes to be read, which may be never."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.linger_s, self.transport.abort)

    def pause_writing(self) -> None:
        """Give a client who does not read what is sent some time to do so."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(self.linger_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the clock: the client has read."""
        self._client_read()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as all else is answered."""
        self._problem(HTTPStatus.BAD_REQUEST, msg)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _client_read(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _too_slow(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the headers were not there within {self.header_timeout_s:g} s")

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self._problem(status, f"{status.phrase}: {detail}.")
        else:
            self.transport.abort()  # an answer is under way; another one in it would be nonsense

    def _problem(self, status: HTTPStatus, detail: str) -> None:
        request_id = str(ULID())
        slug = status.phrase.lower().replace(" ", "-")
        body = json.dumps(
            {
                "type": f"/problems/{slug}",
                "title": status.phrase,
                "status": status.value,
                "detail": detail,
                "request_id": request_id,
            }
        )
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
            f"X-Request-ID: {request_id}",
            "X-Content-Type-Options: nosniff",
            "Cache-Control: no-store",
            "Connection: close",
        )
        self.transport.write("\r\n".join((*head, "", body)).encode("ascii"))
        self.transport.close()
        self.loop.call_later(self.linger_s, self.transport.abort)


def limited_protocol(settings: Settings) -> type[LimitedProtocol]:
    """Return the protocol class with the limits of these settings."""
    return type(
        "LimitedProtocol",
        (LimitedProtocol,),
        {
            "header_timeout_s": settings.header_timeout_s,
            "max_header_bytes": settings.max_header_bytes,
            "linger_s": settings.request_timeout_s,
        },
    )
