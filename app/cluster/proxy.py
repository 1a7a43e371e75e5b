"""For Serve's HTTP proxy, which stands before the application: one request id, and no answer but in the service's form.

The proxy takes it from ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=app.cluster.proxy:middlewares``.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import NotReadyError
from app.problems import KINDS, NOT_READY_HEADERS, problem_response
from app.request_ids import REQUEST_ID_HEADER, request_id_from


def middlewares() -> list[Middleware]:
    """Return what the proxy shall put around itself."""
    return [Middleware(ProxyMiddleware)]


class ProxyMiddleware:
    """Names the request before Serve does, and says in the service's form when Serve itself could not answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_from(Headers(scope=scope).get(REQUEST_ID_HEADER, ""))
        MutableHeaders(scope=scope)[REQUEST_ID_HEADER] = request_id
        scope.setdefault("state", {})["request_id"] = request_id
        lost = False

        async def send_once_named(message: Message) -> None:
            nonlocal lost
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # The application gives one, and Serve another one.
                lost = message["status"] >= 500 and len(headers.getlist(REQUEST_ID_HEADER)) < 2
                headers[REQUEST_ID_HEADER] = request_id
                if lost:
                    await _not_answered(scope)(scope, receive, send)
            if not lost:
                await send(message)

        await self._app(scope, receive, send_once_named)


def _not_answered(scope: Scope) -> ASGIApp:
    detail = "The part of the cluster that had this request is gone; it can be sent again."
    response = problem_response(Request(scope), KINDS[NotReadyError], detail, headers=NOT_READY_HEADERS)
    response.headers[REQUEST_ID_HEADER] = scope["state"]["request_id"]
    return response
