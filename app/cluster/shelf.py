"""The models that an engine of the cluster has loaded: one on demand, loaded once, and dropped when nobody asks."""

import asyncio
import time

from app.inference.loader import LoadedModel
from app.inference.memory import give_back
from app.inference.providers import CPU_PROVIDER
from app.inference.registry import ModelRef
from app.inference.runner import Runner


class Shelf:
    """Loaded models by their names."""

    def __init__(self, runner: Runner, keep: frozenset[ModelRef], idle_s: float) -> None:
        """Make an empty shelf.

        Args:
            runner: Loads models.
            keep: What stays, once it is loaded.
            idle_s: How long another one stays that serves no more and is not asked for.
        """
        self._runner = runner
        self._keep = keep
        self._idle_s = idle_s
        self._models: dict[ModelRef, asyncio.Task[LoadedModel]] = {}
        self._asked_s: dict[ModelRef, float] = {}
        self._one_at_a_time = asyncio.Lock()
        self.active: ModelRef | None = None

    async def get(self, ref: ModelRef) -> LoadedModel:
        """Return a model, loaded now if it is not there.

        Raises:
            ModelError: It can't be served.
        """
        self._asked_s[ref] = time.monotonic()
        loading = self._models.get(ref)
        if loading is None:
            loading = self._models[ref] = asyncio.create_task(self._load(ref))
        # One who asks and is cancelled must not cancel it for the others.
        return await asyncio.shield(loading)

    def loaded(self) -> LoadedModel | None:
        """Return the model that serves, if it is loaded."""
        task = None if self.active is None else self._models.get(self.active)
        return None if task is None or not task.done() or task.exception() is not None else task.result()

    async def tidy(self) -> None:
        """Drop what serves no more and nobody has asked for of late."""
        before_s = time.monotonic() - self._idle_s
        stale = [
            ref
            for ref, task in self._models.items()
            if task.done() and ref != self.active and ref not in self._keep and self._asked_s[ref] < before_s
        ]
        for ref in stale:
            del self._models[ref], self._asked_s[ref]
        if stale:
            await asyncio.to_thread(give_back)

    async def _load(self, ref: ModelRef) -> LoadedModel:
        serving = self.loaded()
        gently = serving is not None and serving.session.provider == CPU_PROVIDER
        try:
            async with self._one_at_a_time:
                return await self._runner.load(ref, gently=gently)
        except BaseException:
            self._models.pop(ref, None)  # the next one who asks tries anew
            raise
