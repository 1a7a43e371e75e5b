"""Security headers on every answer: nothing embeds, sniffs, stores or runs more than this project's own files."""

import base64
import hashlib
import re
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_CLOSED: Final = "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
) + _CLOSED
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for what does not know frame-ancestors
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=(), browsing-topics=()",
}
_POLICY_NAME: Final = b"content-security-policy"
# As ASGI wants them: to look for each among the others through Starlette's mapping takes longer than all else here.
_RAW_HEADERS: Final = tuple((name.lower().encode("ascii"), value.encode("ascii")) for name, value in _HEADERS.items())
_INLINE_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class SecurityHeadersMiddleware:
    """Sets the headers on every answer; a route that sets one of them itself keeps its own.

    Answers are not stored by browsers and proxies, unless a route allows it. There are no CORS headers:
    pages of other origins get no answer to read.
    """

    def __init__(self, app: ASGIApp, docs_path: str) -> None:
        self._app = app
        self._docs_path = docs_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == self._docs_path:
            await self._app(scope, receive, _DocsSend(send))
        else:
            await self._app(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            _set(message, _POLICY)
        await send(message)

    return send_with_headers


class _DocsSend:
    """Holds the start of /docs back until its page is there: the policy names the page's own script by its hash."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None:
            _set(self._start, _docs_policy(message.get("body", b"")))
            await self._send(self._start)
            self._start = None
        await self._send(message)


def _docs_policy(page: bytes) -> str:
    hashes = [f"'sha256-{_digest(script)}'" for script in _INLINE_SCRIPT.findall(page)]
    # Swagger UI writes styles into the page as it runs; no text of a caller is among them.
    return (
        f"default-src 'none'; script-src 'self' {' '.join(hashes)}; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data:; connect-src 'self'; {_CLOSED}"
    )


def _digest(script: bytes) -> str:
    return base64.b64encode(hashlib.sha256(script).digest()).decode("ascii")


def _set(start: Message, policy: str) -> None:
    headers: list[tuple[bytes, bytes]] = list(start.get("headers", ()))
    set_already = {name.lower() for name, _ in headers}
    wanted = ((_POLICY_NAME, policy.encode("ascii")), *_RAW_HEADERS)
    headers.extend((name, value) for name, value in wanted if name not in set_already)
    start["headers"] = headers
