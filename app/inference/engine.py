"""The service's life: starting, ready, draining or failed, and what serves while it is ready."""

import asyncio
from dataclasses import dataclass
from enum import StrEnum

from app.core.errors import ModelNotFoundError, NotReadyError
from app.cpus import usable_cpus
from app.inference.batcher import Batcher
from app.inference.classifier import Classifier
from app.inference.registry import LoadedModel, Registry
from app.metrics import Metrics
from app.settings import Settings


class State(StrEnum):
    """Where the service stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Serving:
    """One model at work."""

    model: LoadedModel
    batcher: Batcher
    classifier: Classifier


class Engine:
    """Loads the active model, hands it to requests while it is ready, and drains it.

    Attributes:
        state: Where the service stands.
        reason: Why it is not ready; None if it is.
        registry: The folder models/.
    """

    def __init__(self, settings: Settings, metrics: Metrics, registry: Registry) -> None:
        self._settings = settings
        self._metrics = metrics
        self.registry = registry
        self.state = State.STARTING
        self.reason: str | None = "The model is being loaded."
        self._serving: Serving | None = None

    @property
    def model(self) -> LoadedModel | None:
        """The model that is loaded, whether or not it may be asked now."""
        return None if self._serving is None else self._serving.model

    @property
    def alive(self) -> bool:
        """Whether the process can go on."""
        return True

    def serving(self, model: str | None = None) -> Serving:
        """Return what answers requests.

        Args:
            model: ``name`` or ``name@version``; None is the active model.

        Raises:
            NotReadyError: Nothing does now.
            ModelNotFoundError: Another model does.
        """
        if self._serving is None or self.state is not State.READY:
            raise NotReadyError(self.reason or "The service is not ready.")
        ref = self._serving.model.installed.ref
        if model not in {None, ref.name, f"{ref.name}@{ref.version}"}:
            raise ModelNotFoundError(f"There is no model {model!r} here; {ref.name} {ref.version} is served.")
        return self._serving

    async def start(self) -> LoadedModel:
        """Load the active model and become ready.

        Raises:
            ModelError: It can't be served; the state is then `State.FAILED`.
        """
        try:
            model = await asyncio.to_thread(self._load)
            self._serving = self._serve(model)
        except Exception as error:
            self.state, self.reason = State.FAILED, str(error)
            raise
        self.state, self.reason = State.READY, None
        manifest = model.manifest
        self._metrics.model_info.labels(
            manifest.name, manifest.version, model.session.provider, manifest.precision
        ).set(1)
        return model

    async def drain(self) -> None:
        """Admit no more, let accepted work end within the setting's limit, and stop."""
        self.state, self.reason = State.DRAINING, "The service is stopping."
        if self._serving is not None:
            await self._serving.batcher.drain(self._settings.drain_timeout_s)
            self._serving.classifier.close()

    def _load(self) -> LoadedModel:
        settings = self._settings
        return self.registry.load(
            self.registry.active(),
            device=settings.device,
            gpu_index=settings.gpu_index,
            threads=settings.inference_threads or usable_cpus(),
            max_batch=settings.max_batch,
        )

    def _serve(self, model: LoadedModel) -> Serving:
        settings = self._settings
        batcher = Batcher(
            model.session, self._metrics, queue_limit=settings.queue_limit, max_wait_ms=settings.max_wait_ms
        )
        batcher.start()
        classifier = Classifier(
            model.manifest,
            batcher,
            self._metrics,
            decode_threads=settings.decode_threads or usable_cpus(),
            max_pixels=settings.max_image_pixels,
        )
        return Serving(model, batcher, classifier)
