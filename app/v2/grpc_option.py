"""gRPC as an option: nothing of it is loaded unless the settings name a port."""

from typing import TYPE_CHECKING

from app.core.errors import ListenError
from app.services import Services

if TYPE_CHECKING:
    from app.v2.grpc_server import GrpcServer


class GrpcOption:
    """The gRPC server, if the settings want one."""

    def __init__(self, services: Services, version: str) -> None:
        """Do nothing yet.

        Args:
            services: Of the running application.
            version: Of this software.
        """
        self._services = services
        self._version = version
        self._server: GrpcServer | None = None

    async def start(self) -> None:
        """Open the port, if one is set.

        Raises:
            ListenError: The extra `grpc` is not installed, or the port can't be used.
        """
        if self._services.settings.grpc_port == 0:
            return
        try:
            from app.v2.grpc_server import GrpcServer  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise ListenError(
                "LEUKOSCOPE_GRPC_PORT is set, but the extra 'grpc' is not installed: "
                f"pip install 'leukoscope[grpc]' (missing: {error.name})"
            ) from error
        self._server = GrpcServer(self._services, self._version)
        await self._server.start()

    async def stop(self) -> None:
        """Accept no more calls, and let those under way end within the setting's limit."""
        if self._server is not None:
            await self._server.stop(self._services.settings.drain_timeout_s)
