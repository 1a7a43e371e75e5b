"""The runner whose models are in the engines of a cluster; nothing of Ray is imported here."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app import logs
from app.cluster.messages import Described, Engines, Order
from app.cluster.outbox import SPREAD, Outbox, Pace
from app.core.errors import LeukoscopeError, ModelError, NotReadyError, SwitchInProgressError
from app.inference.loader import LoadedModel, check_golden, golden_of
from app.inference.outputs import Outputs
from app.inference.registry import ModelRef, Registry
from app.inference.room import Admission, Room
from app.inference.runner import Follow
from app.inference.session import Session
from app.metrics import Metrics
from app.settings import Settings

_LOG: Final = logging.getLogger(__name__)
_Image = NDArray[np.uint8]

_LOOK_EVERY_S: Final = 2.0
_LOOK_LIMIT_S: Final = 10.0


class RemoteSession:
    """A model in the engines, seen as a session; see `app.inference.session.Session`."""

    def __init__(self, ref: ModelRef, described: Described, run: Callable[[_Image], Outputs]) -> None:
        """Make a session.

        Args:
            ref: The model.
            described: As an engine has loaded it.
            run: Has pictures computed, and waits; not for the event loop's thread.
        """
        self.ref = ref
        self.provider = described.provider
        self.max_batch = described.max_batch
        self._run = run

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs, on one engine."""
        return self._run(images)


class RemoteRunner:
    """Sends pictures to engines; see `app.inference.runner.Runner` for what its methods promise."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        registry: Registry,
        engines: Engines,
    ) -> None:
        """Make a runner.

        Args:
            settings: All of them.
            metrics: Where pictures are counted.
            registry: The folder models/, the same one as the engines'.
            engines: Where the models are.
        """
        self._settings = settings
        self._registry = registry
        self._engines = engines
        self._pace = Pace()
        self._room = Room(metrics, settings.queue_limit, self.wait_s)
        self._looking: asyncio.Task[None] | None = None
        self.complaint: str | None = None
        self.alive = True

    @property
    def admitted(self) -> int:
        """Pictures admitted and not yet ended."""
        return self._room.admitted

    def wait_s(self, images: int) -> float:
        """Estimate when so many of the admitted pictures will have ended, from the pace of late, in seconds."""
        return min(images, self.admitted) * self._pace.picture_s

    def start(self) -> None:
        """Do nothing: the engines run already."""

    def watch(self, active: Callable[[], LoadedModel | None], follow: Follow) -> None:  # noqa: ARG002
        """Ask every few seconds whether an engine answers, and whether another model shall serve."""
        self._looking = asyncio.create_task(self._look(follow), name="look after the engines")

    async def load(self, ref: ModelRef, *, gently: bool) -> LoadedModel:  # noqa: ARG002 - engines know it themselves
        """Have every engine load a model, and prove it from here: through the decoder here and the network."""
        installed = await asyncio.to_thread(self._registry.verified, ref)
        assert installed.manifest is not None  # noqa: S101 - `verified` has read it
        manifest = installed.manifest.in_precision(self._settings.precision)
        described = await self._engines.load(ref)
        loop = asyncio.get_running_loop()

        def run(images: _Image) -> Outputs:
            return asyncio.run_coroutine_threadsafe(self._run_once(ref, images), loop).result()

        session = RemoteSession(ref, described, run)
        expected, atol = golden_of(manifest, self._settings.precision, described.provider)
        await asyncio.to_thread(check_golden, manifest, session, expected, atol)
        return LoadedModel(installed, manifest, (session,) * SPREAD, described.precision)

    async def adopted(self, ref: ModelRef) -> None:
        """Tell the engines, and the others who decode."""
        try:
            await self._engines.adopted(ref)
        except LeukoscopeError as error:  # they read active.json, too
            _LOG.warning("not all were told that %s serves: %s", ref, error)

    def reserve(self, images: int, sessions: tuple[Session, ...]) -> Admission:
        """Admit pictures; they go to the engines as soon as they come."""
        session = sessions[0]
        assert isinstance(session, RemoteSession)  # noqa: S101 - `load` has made it
        outbox = Outbox(session.ref, session.max_batch, self._engines, self._settings.request_timeout_s, self._pace)
        return self._room.reserve(images, outbox.submit, outbox.close)

    async def drain(self, limit_s: float) -> bool:
        """End what is admitted."""
        if self._looking is not None:
            self._looking.cancel()
        await self._room.close(limit_s)
        return True

    async def _run_once(self, ref: ModelRef, images: _Image) -> Outputs:
        order = Order(ref, self._settings.request_timeout_s, logs.bound())
        rows: list[Outputs] = []
        for result in await self._engines.run(order, images):
            if isinstance(result, LeukoscopeError):
                raise result
            rows.append(result)
        return Outputs.stacked(rows)

    async def _look(self, follow: Follow) -> None:
        known = await asyncio.to_thread(self._named)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                async with asyncio.timeout(_LOOK_LIMIT_S):
                    await self._engines.ping()
            except (LeukoscopeError, TimeoutError) as error:
                if self.complaint is None:
                    _LOG.critical("no engine answers: %s", error)
                self.complaint = "No engine of the cluster answers."
                continue
            self.complaint = None
            known = await self._catch_up(known, follow)

    async def _catch_up(self, known: ModelRef | None, follow: Follow) -> ModelRef | None:
        """Follow ``active.json`` where it has changed since the last look, and return what it names."""
        named = await asyncio.to_thread(self._named)
        if named is None or named == known:
            return known
        try:
            await follow(named)
        except (SwitchInProgressError, NotReadyError):
            return known  # at the next look
        except LeukoscopeError as error:
            _LOG.warning("active.json names %s, which can't be served: %s", named, error)
        return named

    def _named(self) -> ModelRef | None:
        try:
            return self._registry.active()
        except ModelError:
            return None
