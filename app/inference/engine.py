"""The service's life: starting, ready, draining or failed; which models serve; and how to change them."""

import asyncio
import logging
import math
import weakref
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.core.errors import LeukoscopeError, ModelNotFoundError, NotReadyError, SwitchInProgressError
from app.cpus import usable_cpus
from app.inference.budget import ByteBudget
from app.inference.classifier import Classifier, Decoders
from app.inference.loader import LoadedModel, OpenSession
from app.inference.local import LocalRunner
from app.inference.memory import give_back, settle
from app.inference.opening import open_session as open_by_placement
from app.inference.providers import CPU_PROVIDER
from app.inference.registry import ModelRef, Registry
from app.inference.runner import Runner
from app.inference.tracing import Tracer
from app.metrics import Metrics
from app.settings import Settings

_LOG: Final = logging.getLogger(__name__)
_FREE_PAUSE_S: Final = 1.0


class State(StrEnum):
    """Where the service stands."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Serving:
    """One model at work. Who holds it may go on using it after it has been replaced."""

    model: LoadedModel
    classifier: Classifier


@dataclass(frozen=True, slots=True)
class Switch:
    """How a change of the served model went.

    Attributes:
        model: What is served now.
        problem: Why the next start will not serve it; None if it will.
    """

    model: LoadedModel
    problem: str | None


class Engine:
    """Loads models, hands them to requests while it is ready, changes them, and drains.

    Attributes:
        registry: The folder models/.
        budget: The bound on the bytes of uploads.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        *,
        open_session: OpenSession = open_by_placement,
        tracer: Tracer | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Make an engine; `start` sets it going.

        Args:
            settings: All of them.
            metrics: Where everything is counted.
            registry: The folder models/.
            open_session: Makes a session of a graph.
            tracer: Who hears of the batcher's work; by default nobody.
            runner: What loads and runs the models; by default this process does, and `open_session` and `tracer`
                are for it.
        """
        self._settings = settings
        self._metrics = metrics
        self.registry = registry
        self._runner: Runner = runner or LocalRunner(
            settings, metrics, registry, open_session=open_session, tracer=tracer
        )
        self._decoders = Decoders(settings.decode_threads or usable_cpus(), settings.max_image_pixels)
        self.budget = ByteBudget(
            settings.queue_limit_bytes, metrics, lambda: self._runner.wait_s(self._runner.admitted)
        )
        self._state = State.STARTING
        self._reason: str | None = "The model is being loaded."
        self._switching = asyncio.Lock()
        self._freeing: asyncio.Task[None] | None = None
        self._active: Serving | None = None
        self._resident: dict[ModelRef, Serving] = {}

    @property
    def state(self) -> State:
        """Where the service stands."""
        if self._state is State.READY and self._runner.complaint is not None:
            return State.FAILED
        return self._state

    @property
    def reason(self) -> str | None:
        """Why it is not ready; None if it is."""
        return self._reason or self._runner.complaint

    @property
    def alive(self) -> bool:
        """False once nothing but a restart can help."""
        return self._runner.alive

    @property
    def model(self) -> LoadedModel | None:
        """The model that is loaded, whether or not it may be asked now."""
        return None if self._active is None else self._active.model

    @property
    def resident(self) -> tuple[LoadedModel, ...]:
        """All models that answer, the active one first."""
        others = [serving.model for serving in self._resident.values() if serving is not self._active]
        return (*([self._active.model] if self._active else []), *others)

    def serving(self, wanted: str | None = None) -> Serving:
        """Return what answers requests.

        Args:
            wanted: ``name`` or ``name@version`` of a resident model; None for the active one.

        Raises:
            NotReadyError: Nothing answers now.
            ModelNotFoundError: No such model is resident.
        """
        # While the service drains, what has found its way here is still answered, until the batcher closes.
        if self._active is None or self.state not in {State.READY, State.DRAINING}:
            raise NotReadyError(self.reason or "The service is not ready.")
        if wanted is None:
            return self._active
        for serving in (self._active, *self._resident.values()):
            ref = serving.model.installed.ref
            if wanted in {ref.name, str(ref)}:
                return serving
        answering = ", ".join(str(model.installed.ref) for model in self.resident)
        raise ModelNotFoundError(f"{wanted!r} is not a model that answers here; these do: {answering}.")

    async def start(self) -> LoadedModel:
        """Load the active model, and those that shall be resident beside it, and become ready.

        Raises:
            ModelError: One can't be served; the state is then `State.FAILED`.
        """
        self._runner.start()
        try:
            refs = [self.registry.active(), *(ModelRef.parse(text) for text in self._settings.resident)]
            for ref in dict.fromkeys(refs):
                self._resident[ref] = self._serve(await self._load(ref))
            self._active = self._resident[refs[0]]
        except Exception as error:
            self._state, self._reason = State.FAILED, str(error)
            raise
        self._runner.watch(lambda: self.model, self.follow)
        settle()
        self._state, self._reason = State.READY, None
        self._tell_models()
        return self._active.model

    async def activate(self, ref: ModelRef) -> Switch:
        """Serve another model, without a request lost: those under way end with the one that they began with.

        Args:
            ref: Which one.

        Raises:
            NotReadyError: The service is starting, draining or failed.
            SwitchInProgressError: Another change is under way.
            ModelError: It can't be served; the old one goes on.
        """
        switch = await self._change(ref, persist=True)
        await self._runner.adopted(ref)
        return switch

    async def follow(self, ref: ModelRef) -> None:
        """Serve another model because others do already; as `activate`, but nobody is told and nothing written."""
        if self._active is None or self._active.model.installed.ref != ref:
            await self._change(ref, persist=False)

    async def _change(self, ref: ModelRef, *, persist: bool) -> Switch:
        self.serving()
        if self._switching.locked():
            raise SwitchInProgressError("Another model is being loaded; wait for its end.")
        async with self._switching:
            try:
                serving = self._resident.get(ref) or self._serve(await self._load(ref))
            except LeukoscopeError:
                self._metrics.model_switches.labels("failed").inc()
                raise
            problem = await asyncio.to_thread(self._persist, ref) if persist else None
            self._swap(ref, serving)
        return Switch(serving.model, problem)

    async def prove(self, ref: ModelRef) -> LoadedModel:
        """Load a model as for serving, without serving it.

        Raises:
            ModelError: It can't be served.
        """
        self._runner.start()
        return await self._load(ref)

    def announce_stop(self) -> None:
        """Say that the service will stop soon: not ready any more, but still answering."""
        if self._state is not State.FAILED:
            self._state, self._reason = State.DRAINING, "The service is stopping."

    async def drain(self) -> None:
        """Admit no more, let accepted work end within the setting's limit, and stop."""
        self.announce_stop()
        if self._freeing is not None:
            self._freeing.cancel()
        if not await self._runner.drain(self._settings.drain_timeout_s):
            _LOG.error("a batch still runs, after the time limit for ending")
        self._decoders.close()

    def _swap(self, ref: ModelRef, serving: Serving) -> None:
        old = weakref.ref(self._active) if self._active is not None and self._active is not serving else None
        kept = {ModelRef.parse(text) for text in self._settings.resident}
        self._resident = {old: it for old, it in self._resident.items() if old in kept} | {ref: serving}
        # From here on new requests get the new one. The old one is freed when its last request ends.
        self._active = serving
        self._metrics.model_switches.labels("done").inc()
        self._tell_models()
        _LOG.info("%s is served now", ref)
        if old is not None:
            self._freeing = asyncio.create_task(self._free(old))

    async def _free(self, old: "weakref.ref[Serving]") -> None:
        """Give back the memory of a replaced model, as soon as its last request has ended."""
        for _ in range(math.ceil(self._settings.request_timeout_s / _FREE_PAUSE_S) + 1):
            await asyncio.sleep(_FREE_PAUSE_S)
            await asyncio.to_thread(give_back)
            if old() is None:
                return

    def _persist(self, ref: ModelRef) -> str | None:
        try:
            self.registry.activate(ref)
        except OSError as error:
            _LOG.warning("%s is served, but active.json can't be written: %s", ref, error)
            return f"active.json can't be written: {error.strerror}"
        return None

    async def _load(self, ref: ModelRef) -> LoadedModel:
        gently = self._active is not None and self._active.model.session.provider == CPU_PROVIDER
        return await self._runner.load(ref, gently=gently)

    def _serve(self, model: LoadedModel) -> Serving:
        return Serving(model, Classifier(model, self._runner, self._decoders, self._metrics))

    def _tell_models(self) -> None:
        info = self._metrics.model_info
        info.clear()
        for model in self.resident:
            info.labels(model.manifest.name, model.manifest.version, model.session.provider, model.precision).set(1)
