"""The Open Inference Protocol V2 over gRPC, beside HTTP: the same model, queue, limits and errors.

Needs the extra `grpc`. The messages come from Triton's client, so that no second copy of the
protocol is kept here.
"""

import logging
import time
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.message import Message
from grpc import aio

from app.core.errors import LeukoscopeError, ListenError
from app.logs import bind
from app.problems import INTERNAL_DETAIL, KINDS, error_headers
from app.recording import Caller
from app.request_ids import REQUEST_ID_HEADER, request_id_from
from app.security.keys import KEY_HEADER
from app.services import Services
from app.v2.grpc_methods import PUBLIC_METHODS, GrpcMethods, Method

_SERVICE: Final = "inference.GRPCInferenceService"
_REQUEST_ID: Final = REQUEST_ID_HEADER.lower()
# Tensors are bounded by settings; names, shapes and framing around them take little.
_OVERHEAD_BYTES: Final = 64 * 1024
CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_ACCESS: Final = logging.getLogger("leukoscope.access")
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A call's end without an answer."""

    code: grpc.StatusCode
    message: str
    trailing: tuple[tuple[str, str], ...]


class GrpcServer:
    """Serves the protocol on a port of its own."""

    def __init__(self, services: Services, version: str) -> None:
        """Make a server; `start` opens its port.

        Args:
            services: Of the running application.
            version: Of this software.
        """
        self._services = services
        largest = services.settings.max_request_bytes + _OVERHEAD_BYTES
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", min(largest, 2**31 - 1)),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port in use is an error, as it is for HTTP
            ]
        )
        methods = GrpcMethods(services, version).table()
        handlers = {name: self._handler(name, method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))

    async def start(self) -> None:
        """Open the port and answer.

        Raises:
            ListenError: The port is in use, or may not be used.
        """
        settings = self._services.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(
                f"gRPC can't listen on {address}; is another program using it? "
                "LEUKOSCOPE_GRPC_PORT chooses another port."
            ) from error
        await self._server.start()
        _LOG.info("The Open Inference Protocol is served over gRPC on %s", address)

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, let those under way end within `grace_s`, and stop."""
        await self._server.stop(grace_s)
        del self._server  # gRPC's own thread ends when no server is left

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler:
        async def call(_messages: object, context: aio.ServicerContext) -> Message:
            began_s = time.perf_counter()
            outcome = "CANCELLED"
            metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
            request_id = request_id_from(metadata.get(_REQUEST_ID, ""))
            bind(request_id=request_id)
            await context.send_initial_metadata(((_REQUEST_ID, request_id),))
            try:
                answer = await self._answer(name, method, context, metadata | {_REQUEST_ID: request_id})
                outcome = answer.code.name if isinstance(answer, _Refusal) else "OK"
            finally:
                _ACCESS.info("gRPC %s %s %.0f ms", name, outcome, (time.perf_counter() - began_s) * 1000)
            if isinstance(answer, _Refusal):
                await context.abort(answer.code, answer.message, answer.trailing)
            return answer

        # As a stream of one message, which is the same to a client: so a message is not received, to be
        # held in memory, before `call` wants it. Without a deserializer, it is bytes.
        return grpc.stream_unary_rpc_method_handler(
            call, response_serializer=lambda message: message.SerializeToString()
        )

    async def _answer(
        self, name: str, method: Method, context: aio.ServicerContext, metadata: dict[str, str]
    ) -> Message | _Refusal:
        # What is raised keeps the whole request in memory by its traceback, so it is let go here:
        # gRPC keeps what it is aborted with until the next garbage collection.
        try:
            return await method(context, self._caller(name, metadata))
        except LeukoscopeError as error:
            kind = KINDS[type(error)]
            self._services.metrics.count_rejected(kind.slug)
            trailing = tuple((header.lower(), value) for header, value in error_headers(error, kind).items())
            return _Refusal(CODES[kind.status], str(error), trailing)
        except Exception:  # noqa: BLE001 - the caller gets no internals, the log has them
            _LOG.exception("gRPC %s broke", name)
            return _Refusal(grpc.StatusCode.INTERNAL, INTERNAL_DETAIL, ())

    def _caller(self, name: str, metadata: dict[str, str]) -> Caller:
        """Ask who calls, before anything is read: with the same keys, and in the same words, as over HTTP."""
        keys = self._services.keys
        if name in PUBLIC_METHODS or not keys.clients:
            return Caller(metadata[_REQUEST_ID], None)
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        presented = metadata.get(KEY_HEADER.lower()) or (token.strip() if scheme.lower() == "bearer" else None)
        return Caller(metadata[_REQUEST_ID], keys.known(presented).name)
