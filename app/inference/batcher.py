"""Admit pictures, have workers run them in batches, and see that each ends exactly once."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.errors import InferenceError, LeukoscopeError, NotReadyError, QueueFullError
from app.inference.lanes import Batch, Item, Lane, Lanes
from app.inference.session import Outputs, Session
from app.inference.tracing import NoTracer, Tracer
from app.inference.worker import Worker
from app.metrics import Metrics

_JOIN_S: Final = 1.0

_Image = NDArray[np.uint8]


class Admission:
    """Room for the pictures of one request; each gives its place back when it has ended."""

    def __init__(self, images: int, batcher: "Batcher", sessions: tuple[Session, ...]) -> None:
        self._places = images
        self._batcher = batcher
        self.lane = Lane(sessions)

    async def submit(self, image: _Image) -> Outputs:
        """Have one picture computed and give its place back.

        Args:
            image: Shape ``(size_px, size_px, 3)``.

        Returns:
            What the model says of it, without a batch axis.

        Raises:
            InferenceError: The model failed on this picture's batch.
            DeviceMemoryError: The device has no memory even for this picture alone.
            NotReadyError: The service stopped first.
        """
        try:
            outputs = await self._batcher.submit(self.lane, image)
        except Exception as error:  # a cancelled picture keeps its place until `close` counts it
            if self.release():
                self._batcher.count_failed(error)
            raise
        self.release()
        return outputs

    def release(self) -> bool:
        """Give one place back: this picture has ended. False if all have ended before."""
        if self._places == 0:
            return False
        self._places -= 1
        self._batcher.give_back(1)
        return True

    def close(self) -> int:
        """Give all other places back and return how many pictures were given up."""
        abandoned, self._places = self._places, 0
        self._batcher.forget(self.lane)
        self._batcher.give_back(abandoned)
        return abandoned


class Batcher:
    """One queue for all models, one worker thread for each device.

    While a batch runs, the next pictures gather; when a device frees, as many as fit go next.
    So an idle service adds no wait, and a busy one has full batches without being told to wait.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        workers: int = 1,
        queue_limit: int,
        max_wait_ms: float = 0,
        tracer: Tracer | None = None,
    ) -> None:
        """Make a batcher; `start` sets it going.

        Args:
            metrics: Where waits, batches and the queue's depth are counted.
            workers: How many devices; each model has a session for each of them.
            queue_limit: Most pictures admitted and not yet ended.
            max_wait_ms: How long a batch that is not full waits, from its first picture on.
            tracer: Who hears of waits, batches and runs; by default nobody.
        """
        self._tracer = tracer or NoTracer()
        self._metrics = metrics
        self._queue_limit = queue_limit
        self._lanes = Lanes(workers, max_wait_ms / 1000)
        self._workers = [Worker(index, self._lanes, self._deliver, metrics, self._tracer) for index in range(workers)]
        self._unanswered: set[Item] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._admitted = 0
        self._draining = False
        self._stopped: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        metrics.queue_limit.set(queue_limit)

    def start(self) -> None:
        """Set the workers going; their results come to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for worker in self._workers:
            worker.start()

    @property
    def admitted(self) -> int:
        """Pictures admitted and not yet ended."""
        return self._admitted

    @property
    def busy_s(self) -> float:
        """Seconds for which the longest of the present batches has been running."""
        return max(worker.busy_s for worker in self._workers)

    @property
    def failures(self) -> int:
        """Batches that failed in a row, on the worker that fares worst."""
        return max(worker.failures for worker in self._workers)

    def wait_s(self, images: int) -> float:
        """Estimate when so many of the admitted pictures will have ended, from the pace of late.

        Args:
            images: How many.

        Returns:
            Seconds; 0 while nothing has run yet.
        """
        paces = [worker.picture_s for worker in self._workers]
        return min(images, self._admitted) * sum(paces) / len(paces) ** 2

    @contextmanager
    def reserve(self, images: int, sessions: tuple[Session, ...]) -> Iterator[Admission]:
        """Admit pictures before any work is done for them.

        Args:
            images: How many; all or none are admitted.
            sessions: The model that they are for, once for each worker.

        Raises:
            QueueFullError: There is no room now.
            NotReadyError: The service is draining.
        """
        if self._draining:
            raise NotReadyError("The service is stopping.")
        excess = self._admitted + images - self._queue_limit
        if excess > 0:
            raise QueueFullError(
                f"{self._admitted} pictures are waiting and at most {self._queue_limit} are admitted.",
                retry_after_s=self.wait_s(excess),
            )
        self._metrics.admitted.inc(images)
        self.give_back(-images)
        admission = Admission(images, self, sessions)
        try:
            yield admission
        finally:
            self._metrics.cancelled.inc(admission.close())

    async def submit(self, lane: Lane, image: _Image) -> Outputs:
        """Queue one picture and wait for its end; see `Admission.submit`."""
        if self._stopped is not None:
            raise NotReadyError(self._stopped)
        item = Item(image, asyncio.get_running_loop().create_future(), time.monotonic(), self._tracer.here())
        self._unanswered.add(item)
        self._lanes.put(lane, item)
        try:
            return await item.outputs
        finally:
            item.dropped = True  # if it still waits, its caller is gone
            self._unanswered.discard(item)

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
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
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
        for worker in self._workers:
            worker.failures = 0

    def give_back(self, places: int) -> None:
        """Count places as free again; negative to take them."""
        self._admitted -= places
        self._metrics.queue_depth.set(self._admitted)
        if self._admitted:
            self._idle.clear()
        else:
            self._idle.set()

    def forget(self, lane: Lane) -> None:
        """Drop what waits in the lane of a request that has ended."""
        self._lanes.discard(lane)

    def count_failed(self, error: Exception) -> None:
        """Count a picture that ended with an error which is not its own."""
        self._metrics.failed.labels("stopped" if isinstance(error, NotReadyError) else "inference").inc()

    def _deliver(self, batch: Batch, result: list[Outputs] | LeukoscopeError) -> None:
        assert self._loop is not None  # noqa: S101 - workers run only after `start`
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._end, batch, result)

    def _end(self, batch: Batch, result: list[Outputs] | LeukoscopeError) -> None:
        if isinstance(result, LeukoscopeError):
            _fail(batch.items, result)
            return
        for item, row in zip(batch.items, result, strict=True):
            if not np.isfinite(row.logits).all():
                _fail([item], InferenceError("The model gave no finite number for this picture."))
            elif not item.outputs.done():
                item.outputs.set_result(row)


def _fail(items: "list[Item] | set[Item]", error: LeukoscopeError) -> None:
    for item in list(items):
        if not item.outputs.done():
            # One exception object in many tasks would collect the tracebacks of all of them.
            item.outputs.set_exception(type(error)(str(error)))
