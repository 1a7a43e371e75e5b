"""The runner in this process: batcher, loader and watchdog, on the devices that the settings name."""

import asyncio
import dataclasses
from collections.abc import Callable

from app.cpus import usable_cpus
from app.inference.batcher import Batcher
from app.inference.loader import LoadedModel, Loader, OpenSession
from app.inference.opening import open_session as open_by_placement
from app.inference.providers import Placement, gpu_count
from app.inference.registry import ModelRef, Registry
from app.inference.room import Admission
from app.inference.runner import Follow
from app.inference.session import Session
from app.inference.tracing import Tracer
from app.inference.watchdog import Watchdog
from app.metrics import Metrics
from app.settings import Settings


class LocalRunner:
    """Runs models here; see `app.inference.runner.Runner` for what its methods promise."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        *,
        open_session: OpenSession = open_by_placement,
        tracer: Tracer | None = None,
    ) -> None:
        """Make a runner; `start` sets it going.

        Args:
            settings: All of them.
            metrics: Where everything is counted.
            registry: The folder models/.
            open_session: Makes a session of a graph.
            tracer: Who hears of the batcher's work; by default nobody.
        """
        placements = _placements(settings)
        self._loader = Loader(registry, placements, open_session)
        self._batcher = Batcher(
            metrics,
            workers=len(placements),
            one_device=len(set(placements)) == 1,
            queue_limit=settings.queue_limit,
            max_wait_ms=settings.max_wait_ms,
            tracer=tracer,
        )
        self._active: Callable[[], LoadedModel | None] = lambda: None
        self._watchdog = Watchdog(self._batcher, self._self_tests, settings.run_timeout_s)

    @property
    def admitted(self) -> int:
        """Pictures admitted and not yet ended."""
        return self._batcher.admitted

    @property
    def complaint(self) -> str | None:
        """Why nothing can be run now; None if it can."""
        return self._watchdog.complaint

    @property
    def alive(self) -> bool:
        """False once nothing but a restart can help."""
        return self._watchdog.alive

    def wait_s(self, images: int) -> float:
        """Estimate when so many of the admitted pictures will have ended, in seconds."""
        return self._batcher.wait_s(images)

    def start(self) -> None:
        """Set the workers going."""
        self._batcher.start()

    def watch(self, active: Callable[[], LoadedModel | None], follow: Follow) -> None:  # noqa: ARG002 - nobody else changes it
        """Watch the workers from now on."""
        self._active = active
        self._watchdog.start()

    async def load(self, ref: ModelRef, *, gently: bool) -> LoadedModel:
        """Load a model onto the devices."""
        return await asyncio.to_thread(self._loader.load, ref, self._batcher.run_on, gently=gently)

    async def adopted(self, ref: ModelRef) -> None:
        """Do nothing: what is loaded is here, and goes when its last user goes."""

    def reserve(self, images: int, sessions: tuple[Session, ...]) -> Admission:
        """Admit pictures to the queue."""
        return self._batcher.reserve(images, sessions)

    async def drain(self, limit_s: float) -> bool:
        """End what is admitted, and stop."""
        self._watchdog.stop()
        return await self._batcher.drain(limit_s)

    def _self_tests(self) -> list[Callable[[], None]]:
        model = self._active()
        return [] if model is None else self._loader.self_tests(model)


def _placements(settings: Settings) -> list[Placement]:
    """Return one for each worker: each GPU has one, and without a GPU each thread, all on one session."""
    common = Placement(
        device=settings.device,
        threads=settings.inference_threads or usable_cpus(),
        max_batch=settings.max_batch,
        engine=settings.cuda_engine,
        cpu_engine=settings.cpu_engine,
        precision=settings.precision,
        cache_dir=settings.engine_cache_dir,
    )
    if settings.device == "cpu" or (settings.device == "auto" and not gpu_count()):
        return [dataclasses.replace(common, callers=common.threads)] * common.threads
    return [dataclasses.replace(common, gpu_index=gpu) for gpu in settings.gpus]
