"""An engine of the cluster: takes pictures that are decoded, and runs them in batches with those of other requests."""

import asyncio
import contextlib
import logging
import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app import logs
from app.cluster.messages import Described, Order, Results
from app.cluster.shelf import Shelf
from app.core.errors import DeviceMemoryError, InferenceError, LeukoscopeError, NotReadyError
from app.inference.deadline import until
from app.inference.local import LocalRunner
from app.inference.memory import settle
from app.inference.outputs import Outputs
from app.inference.registry import ModelRef, Registry
from app.inference.runner import Places
from app.metrics import Metrics
from app.settings import Settings

_LOG: Final = logging.getLogger(__name__)
_TIDY_EVERY_S: Final = 10.0


class Engine:
    """Runs models for others. Every method is one that they call; none raises what is worth an answer, but returns it.

    An exception that crosses between processes loses what it holds besides its text.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Make an engine; `start` loads its models.

        Args:
            settings: All of them, with the threads and devices that this process may use.
            metrics: Where everything is counted.
        """
        self._settings = settings
        self._registry = Registry(settings.models_dir)
        self._runner = LocalRunner(settings, metrics, self._registry)
        resident = frozenset(ModelRef.parse(text) for text in settings.resident)
        # As long as a request may still come that was decoded for a model before it was replaced.
        self._shelf = Shelf(self._runner, resident, idle_s=2 * settings.request_timeout_s)
        self._tidying: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load what serves, and what is resident beside it.

        Raises:
            ModelError: One can't be served.
        """
        began_s = time.monotonic()
        self._runner.start()
        self._shelf.active = await asyncio.to_thread(self._registry.active)
        for ref in (self._shelf.active, *(ModelRef.parse(text) for text in self._settings.resident)):
            model = await self._shelf.get(ref)
            _LOG.info("%s is loaded on %s after %.1f s", ref, model.session.provider, time.monotonic() - began_s)
        self._runner.watch(self._shelf.loaded, self._adopt)
        self._tidying = asyncio.create_task(self._tidy())
        settle()

    @property
    def admitted(self) -> int:
        """Pictures that wait or run."""
        return self._runner.admitted

    def check_alive(self) -> None:
        """Return if a restart would be of no use.

        Raises:
            NotReadyError: A run hangs, or the device has failed for long.
        """
        if not self._runner.alive:
            raise NotReadyError(self._runner.complaint or "The engine must be restarted.")

    async def run(self, order: Order, images: NDArray[np.uint8]) -> Results | LeukoscopeError:
        """Compute some pictures; see `app.cluster.messages.Engines.run`.

        Returns:
            The results, or why there are none.
        """
        logs.bind(**order.log)
        if self._runner.complaint is not None:
            return NotReadyError(self._runner.complaint)
        deadline_s = asyncio.get_running_loop().time() + order.left_s
        try:
            async with until(deadline_s, "The answer was not there in the time that the engine was given."):
                model = await self._shelf.get(order.ref)
                with self._runner.reserve(len(images), model.sessions) as places:
                    return await asyncio.gather(*(_result(image, places) for image in images))
        except LeukoscopeError as error:
            return error

    async def load(self, ref: ModelRef) -> Described | LeukoscopeError:
        """Load a model and prove it; it serves who asks for it."""
        try:
            model = await self._shelf.get(ref)
        except LeukoscopeError as error:
            return error
        return Described(model.session.provider, sum(session.max_batch for session in model.sessions), model.precision)

    async def adopted(self, ref: ModelRef) -> None:
        """Keep a model from now on, in place of the one that served."""
        self._shelf.active = ref

    async def drain(self) -> None:
        """End what is admitted, and stop."""
        if self._tidying is not None:
            self._tidying.cancel()
        if not await self._runner.drain(self._settings.drain_timeout_s):
            _LOG.error("a batch still runs, after the time limit for ending")

    async def _adopt(self, ref: ModelRef) -> None:
        await self.adopted(ref)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            with contextlib.suppress(LeukoscopeError):
                await self._shelf.tidy()


async def _result(image: NDArray[np.uint8], places: Places) -> Outputs | LeukoscopeError:
    try:
        return await places.submit(image)
    except (InferenceError, DeviceMemoryError) as error:
        return error
