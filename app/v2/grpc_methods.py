"""What the methods of the protocol's gRPC service do: receive a message, ask the engine, answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from google.protobuf.message import DecodeError, Message
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

from app.core.errors import DeadlineExceededError, NotReadyError, TensorError
from app.inference.budget import Hold
from app.inference.engine import Serving, State
from app.recording import Caller
from app.services import Services
from app.v2 import grpc_messages
from app.v2.model import EXTENSIONS, PLATFORM, SERVER_NAME, infer, inputs_of, model_reference, outputs_of, versions_of

Method = Callable[[aio.ServicerContext, Caller], Awaitable[Message]]

PUBLIC_METHODS: Final = frozenset({"ServerLive", "ServerReady", "ServerMetadata"})
"""Those that need no API key, as over HTTP."""


class _Inbox:
    """Receives the messages of one method, a few at a time.

    How large a message is shows only when it is there. So few are received at once that they fit
    into the bound on uploads' bytes even if each is of the largest size.
    """

    def __init__(self, services: Services, message: type[Message]) -> None:
        settings = services.settings
        self._timeout_s = settings.request_timeout_s
        self._message = message
        self._slots = asyncio.Semaphore(max(1, settings.queue_limit_bytes // settings.max_request_bytes))

    async def receive(self, context: aio.ServicerContext, held: Hold) -> Message:
        """Receive the one message of a call.

        Args:
            context: Of the call.
            held: Where its bytes are counted.

        Raises:
            QueueFullError: All requests together hold too many bytes.
            DeadlineExceededError: It did not arrive in time.
            TensorError: None came, or it is not of this type.
        """
        try:
            async with self._slots, asyncio.timeout(self._timeout_s):
                raw = await context.read()
        except TimeoutError as error:
            raise DeadlineExceededError(f"The message did not arrive within {self._timeout_s:g} s.") from error
        if not isinstance(raw, bytes):
            raise TensorError("The call ended without a message.")
        held.add(len(raw))
        try:
            return await asyncio.to_thread(self._message.FromString, raw)
        except DecodeError as error:
            raise TensorError(f"The message is no {self._message.DESCRIPTOR.name}.") from error


class GrpcMethods:
    """The methods of the service."""

    def __init__(self, services: Services, version: str) -> None:
        """Make them.

        Args:
            services: Of the running application.
            version: Of this software.
        """
        self._services = services
        self._version = version
        # One for each, so that many uploads to be inferred don't keep back a question of readiness.
        self._ready_inbox = _Inbox(services, pb.ModelReadyRequest)
        self._metadata_inbox = _Inbox(services, pb.ModelMetadataRequest)
        self._infer_inbox = _Inbox(services, pb.ModelInferRequest)

    def table(self) -> dict[str, Method]:
        """Return each method by name; all others of the protocol are answered UNIMPLEMENTED."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }

    async def _server_live(self, _context: aio.ServicerContext, _caller: Caller) -> Message:
        return pb.ServerLiveResponse(live=self._services.engine.alive)

    async def _server_ready(self, _context: aio.ServicerContext, _caller: Caller) -> Message:
        return pb.ServerReadyResponse(ready=self._ready)

    async def _server_metadata(self, _context: aio.ServicerContext, _caller: Caller) -> Message:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    async def _model_ready(self, context: aio.ServicerContext, _caller: Caller) -> Message:
        with self._services.engine.budget.hold() as held:
            request = await self._ready_inbox.receive(context, held)
        try:
            self._serving(request.name, request.version)
        except NotReadyError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready)

    async def _model_metadata(self, context: aio.ServicerContext, _caller: Caller) -> Message:
        with self._services.engine.budget.hold() as held:
            request = await self._metadata_inbox.receive(context, held)
        manifest = self._serving(request.name, request.version).model.manifest
        return pb.ModelMetadataResponse(
            name=manifest.name,
            versions=versions_of(self._services.engine, manifest.name),
            platform=PLATFORM,
            inputs=[grpc_messages.metadata(spec) for spec in inputs_of(manifest).values()],
            outputs=[grpc_messages.metadata(spec) for spec in outputs_of(manifest).values()],
        )

    async def _model_infer(self, context: aio.ServicerContext, caller: Caller) -> Message:
        settings = self._services.settings
        self._services.engine.serving()  # before the message is received, so that a starting service refuses early
        with self._services.engine.budget.hold() as held:
            message = await self._infer_inbox.receive(context, held)
            serving = self._serving(message.model_name, message.model_version)
            request = await asyncio.to_thread(grpc_messages.parse, message, max_values=settings.max_json_bytes)
            del message  # what is needed of it has been copied
            left_s = context.time_remaining()
            timeout_s = settings.request_timeout_s if left_s is None else min(left_s, settings.request_timeout_s)
            response = await infer(self._services, serving, caller, request, timeout_s=timeout_s)
        return grpc_messages.render(response)

    @property
    def _ready(self) -> bool:
        return self._services.engine.state is State.READY

    def _serving(self, model: str, version: str) -> Serving:
        return self._services.engine.serving(model_reference(model, version))
