"""Admit pictures, have workers run them in batches, and see that each ends exactly once."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Final, TypeVarTuple

import numpy as np
from numpy.typing import NDArray

from app.core.errors import InferenceError, LeukoscopeError, NotReadyError
from app.inference.lanes import Batch, Item, Lane, Lanes
from app.inference.outputs import Outputs
from app.inference.room import Admission, Coming, Room
from app.inference.session import Session
from app.inference.tracing import NoTracer, Tracer
from app.inference.worker import Streak, Worker
from app.metrics import Metrics

_JOIN_S: Final = 1.0

_NOT_YET: Final = np.empty(0, dtype=np.uint8)

_Image = NDArray[np.uint8]
_Arguments = TypeVarTuple("_Arguments")


class Batcher:
    """One queue for all models, one worker thread for each GPU, or for each of a CPU's threads.

    While a batch runs, the next pictures gather; when a device frees, as many as fit go next.
    So an idle service adds no wait, and a busy one has full batches without being told to wait.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        workers: int = 1,
        one_device: bool = False,
        queue_limit: int,
        max_wait_ms: float = 0,
        tracer: Tracer | None = None,
    ) -> None:
        """Make a batcher; `start` sets it going.

        Args:
            metrics: Where waits, batches and the queue's depth are counted.
            workers: How many; each model has a session for each of them.
            one_device: Whether all workers run on the same device, so that their failures count together.
            queue_limit: Most pictures admitted and not yet ended.
            max_wait_ms: How long a batch that is not full waits, from its first picture on.
            tracer: Who hears of waits, batches and runs; by default nobody.
        """
        self._tracer = tracer or NoTracer()
        self._lanes = Lanes(workers, max_wait_ms / 1000)
        self._failures = [Streak()] * workers if one_device else [Streak() for _ in range(workers)]
        self._workers = [
            Worker(index, self._lanes, self._deliver, metrics, self._tracer, failures, lambda: self.admitted == 1)
            for index, failures in enumerate(self._failures)
        ]
        self._room = Room(metrics, queue_limit, self.wait_s)
        self._unanswered: set[Item] = set()
        self._stopped: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Set the workers going; their results come to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for worker in self._workers:
            worker.start()

    @property
    def admitted(self) -> int:
        """Pictures admitted and not yet ended."""
        return self._room.admitted

    @property
    def busy_s(self) -> float:
        """Seconds for which the longest of the present batches has been running."""
        return max(worker.busy_s for worker in self._workers)

    @property
    def failures(self) -> int:
        """Batches that failed in a row, on the device that fares worst."""
        return max(failures.length for failures in self._failures)

    def wait_s(self, images: int) -> float:
        """Estimate when so many of the admitted pictures will have ended, from the pace of late.

        Args:
            images: How many.

        Returns:
            Seconds; 0 while nothing has run yet.
        """
        paces = [worker.picture_s for worker in self._workers]
        return min(images, self.admitted) * sum(paces) / len(paces) ** 2

    def reserve(self, images: int, sessions: tuple[Session, ...]) -> Admission:
        """Admit pictures before any work is done for them.

        Args:
            images: How many; all or none are admitted.
            sessions: The model that they are for, once for each worker.

        Raises:
            QueueFullError: There is no room now.
            NotReadyError: The service is draining.
        """
        lane = Lane(sessions)
        return self._room.reserve(images, partial(self.submit, lane), partial(self._lanes.discard, lane))

    async def submit(self, lane: Lane, picture: Coming) -> Outputs:
        """Queue one picture and wait for its end; see `app.inference.runner.Places.submit`."""
        if self._stopped is not None:
            raise NotReadyError(self._stopped)
        image = _NOT_YET if isinstance(picture, Future) else picture
        item = Item(image, asyncio.get_running_loop().create_future(), time.monotonic(), self._tracer.here())
        self._unanswered.add(item)
        try:
            if isinstance(picture, Future):
                picture.add_done_callback(partial(self._decoded, lane, item))
            else:
                self._lanes.put(lane, item)
            return await item.outputs
        finally:
            item.dropped = True  # if it still waits, its caller is gone
            self._unanswered.discard(item)
            if isinstance(picture, Future):
                picture.cancel()
            del item, picture  # a fault that knew them would keep them in memory, for they know the fault

    def _decoded(self, lane: Lane, item: Item, decoding: Future[_Image]) -> None:
        """Take a picture from the thread that has decoded it: the event loop has nothing to do with it."""
        if decoding.cancelled() or item.dropped:
            return
        fault = decoding.exception()
        if fault is None:
            item.image, item.arrived_s = decoding.result(), time.monotonic()
            self._lanes.put(lane, item)
        else:
            self._call_soon(_tell, item, fault)

    def run_on(self, worker: int, errand: Callable[[], object]) -> None:
        """Run something on a worker's thread, between two batches, and wait for its end.

        Call it from another thread than the event loop's.

        Raises:
            concurrent.futures.CancelledError: The batcher stopped first.
        """
        self._lanes.errand(worker, errand).result()

    async def drain(self, limit_s: float) -> bool:
        """Admit no more, let what is admitted end within `limit_s`, fail the rest, and stop.

        Returns:
            Whether every worker has ended; if not, a run hangs.
        """
        await self._room.close(limit_s)
        self.fail_all("The service stopped before this picture was answered.")
        self._lanes.close()
        return all([await asyncio.to_thread(worker.join, _JOIN_S) for worker in self._workers])

    def fail_all(self, reason: str) -> None:
        """End every picture that is not answered, those in the model too, and take no more of those admitted."""
        self._stopped = reason
        _fail(self._unanswered, NotReadyError(reason))

    def resume(self) -> None:
        """Take pictures again after `fail_all`."""
        self._stopped = None

    def forgive(self) -> None:
        """Forget earlier failures: the devices are well again."""
        for failures in self._failures:
            failures.note(failed=False)

    def _deliver(self, batch: Batch, result: list[Outputs] | LeukoscopeError) -> None:
        self._call_soon(self._end, batch, result)

    def _call_soon(self, call: Callable[[*_Arguments], None], *arguments: *_Arguments) -> None:
        assert self._loop is not None  # noqa: S101 - nothing is accepted before `start`
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(call, *arguments)

    def _end(self, batch: Batch, result: list[Outputs] | LeukoscopeError) -> None:
        if isinstance(result, LeukoscopeError):
            _fail(batch.items, result)
            return
        for item, row in zip(batch.items, result, strict=True):
            if not np.isfinite(row.logits).all():
                _tell(item, InferenceError("The model gave no finite number for this picture."))
            elif not item.outputs.done():
                item.outputs.set_result(row)


def _tell(item: Item, fault: BaseException) -> None:
    if not item.outputs.done():
        item.outputs.set_exception(fault)


def _fail(items: "list[Item] | set[Item]", error: LeukoscopeError) -> None:
    for item in list(items):
        # One exception object in many tasks would collect the tracebacks of all of them.
        _tell(item, type(error)(str(error)))
