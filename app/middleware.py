"""Around every request: its id, its duration, its log line, and the rest of a body that nobody read."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import bind
from app.metrics import Metrics
from app.problems import internal_error
from app.request_ids import REQUEST_ID_HEADER, request_id_from

_ACCESS: Final = logging.getLogger("leukoscope.access")
_LOG: Final = logging.getLogger(__name__)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE: Final = 499  # nginx's number for it; no such answer is ever sent
_DISCARD_S: Final = 10.0


class RequestMiddleware:
    """Gives each request an id, measures it, logs it, and answers 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(Headers(scope=scope).get(REQUEST_ID_HEADER, ""))
        scope.setdefault("state", {}).update(request_id=request_id, began_s=asyncio.get_running_loop().time())
        bind(request_id=request_id)
        status = _CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        began_s = time.perf_counter()
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = _CLIENT_GONE
        except Exception:
            _LOG.exception("request %s broke", request_id)
            if status != _CLIENT_GONE:
                raise  # the answer has begun; the server can only cut it off
            await internal_error(Request(scope))(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - began_s, request_id)

    def _record(self, scope: Scope, status: int, duration_s: float, request_id: str) -> None:
        # Methods and paths are the caller's free text: only those we know become labels.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        self._metrics.request_seconds.labels(method, route, str(status)).observe(duration_s)
        path, duration_ms = quote(scope["path"]), duration_s * 1000
        fields = {"method": method, "path": path, "status": status, "duration_ms": round(duration_ms, 1)}
        fields["key"] = scope["state"].get("key_name")
        _ACCESS.info("%s %s %d %.0f ms %s", method, path, status, duration_ms, request_id, extra={"fields": fields})


class UnreadBodyMiddleware:
    """Reads and throws away, for a bounded time, a body that was refused before its end.

    A connection that is closed while the client still writes is reset, and an ordinary client then
    reports a broken pipe where it should show the 413. So the answer goes out at once, and the
    connection stays open while the rest arrives.
    """

    def __init__(self, app: ASGIApp, discard_s: float = _DISCARD_S) -> None:
        self._app = app
        self._discard_s = discard_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body_ended = False

        async def watching_receive() -> Message:
            nonlocal body_ended
            message = await receive()
            body_ended = body_ended or message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def lingering_send(message: Message) -> None:
            if body_ended:
                await send(message)
            elif message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
                await send(message)
            elif message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "more_body": True})
                await discard()
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        async def discard() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._discard_s):
                    while not body_ended:
                        await watching_receive()

        await self._app(scope, watching_receive, lingering_send)


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
