"""The Open Inference Protocol V2 over gRPC, beside HTTP: the same model, queue, limits and errors.

Needs the extra `grpc`. The messages come from Triton's client, so that no second copy of the
protocol is kept here.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.message import Message
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

from app.core.errors import LeukoscopeError, ListenError, NotReadyError
from app.inference.engine import Serving, State
from app.problems import INTERNAL_DETAIL, KINDS, retry_after
from app.services import Services
from app.v2 import grpc_messages
from app.v2.model import EXTENSIONS, PLATFORM, SERVER_NAME, infer, inputs_of, model_reference, outputs_of

_SERVICE: Final = "inference.GRPCInferenceService"
# Tensors are bounded by settings; names, shapes and framing around them take little.
_OVERHEAD_BYTES: Final = 64 * 1024
_CODES: Final = {
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
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_ACCESS: Final = logging.getLogger("leukoscope.access")
_LOG: Final = logging.getLogger(__name__)

_Method = Callable[[Any, aio.ServicerContext], Awaitable[Message]]


class GrpcServer:
    """Serves the protocol on a port of its own."""

    def __init__(self, services: Services, version: str) -> None:
        """Make a server; `start` opens its port.

        Args:
            services: Of the running application.
            version: Of this software.
        """
        self._services = services
        self._methods = _Methods(services, version)
        largest = services.settings.max_request_bytes + _OVERHEAD_BYTES
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", min(largest, 2**31 - 1)),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port in use is an error, as it is for HTTP
            ],
            maximum_concurrent_rpcs=services.settings.queue_limit,
        )
        handlers = {name: self._handler(name, method, kind) for name, (method, kind) in self._methods.table().items()}
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

    def _handler(self, name: str, method: _Method, request_type: type[Message]) -> grpc.RpcMethodHandler:
        async def call(request: Message, context: aio.ServicerContext) -> Message:
            began_s = time.perf_counter()
            outcome = "CANCELLED"
            try:
                # Here, before anything is done, is the place to ask who calls.
                response = await method(request, context)
                outcome = "OK"
            except LeukoscopeError as error:
                outcome = _CODES[KINDS[type(error)].status].name
                await self._refuse(context, error)
            except Exception:  # noqa: BLE001 - the caller gets no internals, the log has them
                outcome = "INTERNAL"
                _LOG.exception("gRPC %s broke", name)
                await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_DETAIL)
            finally:
                _ACCESS.info("gRPC %s %s %.0f ms", name, outcome, (time.perf_counter() - began_s) * 1000)
            return response

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=request_type.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    async def _refuse(self, context: aio.ServicerContext, error: LeukoscopeError) -> NoReturn:
        kind = KINDS[type(error)]
        self._services.metrics.count_rejected(kind.slug)
        trailing = tuple((name.lower(), value) for name, value in retry_after(error, kind).items())
        await context.abort(_CODES[kind.status], str(error), trailing)
        raise AssertionError  # `abort` always raises; no type says so


class _Methods:
    """What the service's methods do."""

    def __init__(self, services: Services, version: str) -> None:
        self._services = services
        self._version = version

    def table(self) -> dict[str, tuple[_Method, type[Message]]]:
        """Return each method by name, with the type of its request; others are answered UNIMPLEMENTED."""
        return {
            "ServerLive": (self._server_live, pb.ServerLiveRequest),
            "ServerReady": (self._server_ready, pb.ServerReadyRequest),
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ServerMetadata": (self._server_metadata, pb.ServerMetadataRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelInfer": (self._model_infer, pb.ModelInferRequest),
        }

    async def _server_live(
        self, _request: pb.ServerLiveRequest, _context: aio.ServicerContext
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._services.engine.alive)

    async def _server_ready(
        self, _request: pb.ServerReadyRequest, _context: aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._services.engine.state is State.READY)

    async def _model_ready(self, request: pb.ModelReadyRequest, _context: aio.ServicerContext) -> pb.ModelReadyResponse:
        try:
            self._serving(request.name, request.version)
        except NotReadyError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def _server_metadata(
        self, _request: pb.ServerMetadataRequest, _context: aio.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    async def _model_metadata(
        self, request: pb.ModelMetadataRequest, _context: aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        manifest = self._serving(request.name, request.version).model.manifest
        return pb.ModelMetadataResponse(
            name=manifest.name,
            versions=[manifest.version],
            platform=PLATFORM,
            inputs=[grpc_messages.metadata(spec) for spec in inputs_of(manifest).values()],
            outputs=[grpc_messages.metadata(spec) for spec in outputs_of(manifest).values()],
        )

    async def _model_infer(self, request: pb.ModelInferRequest, context: aio.ServicerContext) -> pb.ModelInferResponse:
        settings = self._services.settings
        serving = self._serving(request.model_name, request.model_version)
        parsed = await asyncio.to_thread(grpc_messages.parse, request)
        left_s = context.time_remaining()
        timeout_s = settings.request_timeout_s if left_s is None else min(left_s, settings.request_timeout_s)
        response = await infer(serving, parsed, max_images=settings.max_images_per_request, timeout_s=timeout_s)
        return grpc_messages.render(response)

    def _serving(self, model: str, version: str) -> Serving:
        return self._services.engine.serving(model_reference(model, version))
