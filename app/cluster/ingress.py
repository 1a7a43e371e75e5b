"""What Serve runs: a deployment with the application of `app.main`, and one with an engine."""

import asyncio
import contextlib
import math
from typing import Final, NoReturn

import numpy as np
import ray
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

from app import logs
from app.cluster.engine import Engine
from app.cluster.exporter import RayMetrics
from app.cluster.handle import HandleEngines
from app.cluster.messages import Described, Order, Results
from app.cluster.remote import RemoteRunner
from app.cluster.scaling import QUEUED_IMAGES
from app.core.errors import LeukoscopeError
from app.inference.registry import ModelRef, Registry
from app.inference.runner import Runner
from app.main import create_app
from app.metrics import Metrics
from app.routes.metrics import observe_state
from app.services import services_in
from app.settings import Settings

INGRESS: Final = "ingress"
ENGINE: Final = "engine"

_OBSERVE_EVERY_S: Final = 5.0


class EngineDeployment:
    """One replica holds one engine. Its CPUs, as Ray has assigned them, are the model's threads."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Serve awaits it
        logs.configure(settings.log_level, settings.log_format)
        self._engine = Engine(_with_assigned_threads(settings), RayMetrics())
        await self._engine.start()

    async def run(self, order: Order, images: NDArray[np.uint8]) -> Results | LeukoscopeError:
        """See `app.cluster.engine.Engine.run`."""
        return await self._engine.run(order, images)

    async def load(self, ref: ModelRef) -> Described | LeukoscopeError:
        """See `app.cluster.engine.Engine.load`."""
        return await self._engine.load(ref)

    async def adopted(self, ref: ModelRef) -> None:
        """See `app.cluster.engine.Engine.adopted`."""
        await self._engine.adopted(ref)

    async def ping(self) -> None:
        """Answer."""

    async def check_health(self) -> None:
        """Have Serve replace this replica where only a restart helps."""
        self._engine.check_alive()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Serve how many pictures wait or run."""
        return {QUEUED_IMAGES: self._engine.admitted}

    async def __del__(self) -> None:
        """End what is admitted; Serve awaits it."""
        if hasattr(self, "_engine"):
            await self._engine.drain()


class IngressDeployment:
    """One replica holds one application, with all its routes; it decodes, and sends pictures to the engines."""

    def __init__(self, settings: Settings, engines: DeploymentHandle) -> None:
        logs.configure(settings.log_level, settings.log_format)
        context = serve.get_replica_context()
        cluster = HandleEngines(engines, lambda: serve.get_deployment_handle(INGRESS, context.app_name))
        metrics = RayMetrics()

        def open_runner(settings: Settings, metrics: Metrics, registry: Registry) -> Runner:
            return RemoteRunner(settings, metrics, registry, cluster)

        self._app = create_app(
            _of_replica(settings, context.replica_id.unique_id),
            on_start_failure=_refuse,
            open_runner=open_runner,
            metrics=metrics,
            ready_first=True,
        )
        self._observing = asyncio.get_running_loop().create_task(self._observe())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls this once."""
        return self._app

    async def follow(self, ref: ModelRef) -> None:
        """Serve another model, because another replica was told to."""
        await services_in(self._app).engine.follow(ref)

    async def _observe(self) -> None:
        while True:
            await asyncio.sleep(_OBSERVE_EVERY_S)
            with contextlib.suppress(AttributeError):  # not yet started
                observe_state(services_in(self._app))


def _with_assigned_threads(settings: Settings) -> Settings:
    return settings.model_copy(update={"inference_threads": settings.inference_threads or _assigned_cpus()})


def _of_replica(settings: Settings, replica: str) -> Settings:
    update: dict[str, object] = {"decode_threads": settings.decode_threads or _assigned_cpus()}
    if settings.audit_log is not None:  # a chain of lines has one writer
        path = settings.audit_log
        update["audit_log"] = path.with_name(f"{path.stem}-{replica}{path.suffix}")
    return settings.model_copy(update=update)


def _refuse(error: Exception) -> NoReturn:
    """Stop the start of this replica; Serve tries another one."""
    raise error


def _assigned_cpus() -> int:
    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()
    return max(1, math.ceil(resources.get("CPU", 1)))
