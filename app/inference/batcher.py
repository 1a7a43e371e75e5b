"""Bring pictures of many requests together in batches: bounded, cancellable, each ends exactly once."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.errors import InferenceError, NotReadyError, QueueFullError
from app.inference.session import Outputs, Session
from app.inference.tracing import NoTracer, Place, Tracer
from app.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)
_NEWEST_SHARE: Final = 0.2  # of the newest batch in the running mean of seconds per picture

_Image = NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class _Item:
    image: _Image
    outputs: asyncio.Future[Outputs]
    arrived_s: float
    place: Place


class Admission:
    """Room for some pictures in the queue; each gives its place back when it has ended."""

    def __init__(
        self, images: int, submit: Callable[[_Image], Awaitable[Outputs]], give_back: Callable[[int], None]
    ) -> None:
        self._places = images
        self._submit = submit
        self._give_back = give_back

    async def submit(self, image: _Image) -> Outputs:
        """Have one picture computed and give its place back.

        Args:
            image: Shape ``(size_px, size_px, 3)``.

        Returns:
            What the model says of it, without a batch axis.

        Raises:
            InferenceError: The model failed on this picture's batch.
            NotReadyError: The service stopped first.
        """
        try:
            outputs = await self._submit(image)
        except Exception:  # a cancelled picture keeps its place until `close` counts it
            self.release()
            raise
        self.release()
        return outputs

    def release(self) -> None:
        """Give one place back: this picture has ended."""
        if self._places == 0:
            return
        self._places -= 1
        self._give_back(1)

    def close(self) -> int:
        """Give all other places back and return how many pictures were given up."""
        abandoned, self._places = self._places, 0
        self._give_back(abandoned)
        return abandoned


class Batcher:
    """One session, one worker thread, one queue.

    While a batch runs, the next pictures gather; when the device frees, as many as fit go next.
    So an idle service adds no wait, and a busy one has full batches without being told to wait.
    """

    def __init__(
        self,
        session: Session,
        metrics: Metrics,
        *,
        queue_limit: int,
        max_wait_ms: float = 0,
        tracer: Tracer | None = None,
    ) -> None:
        """Make a batcher; `start` sets it going.

        Args:
            session: What computes.
            metrics: Where waits, batches and the queue's depth are counted.
            queue_limit: Most pictures admitted and not yet ended.
            max_wait_ms: How long a batch that is not full waits, from its first picture on.
            tracer: Who hears of waits, batches and runs; by default nobody.
        """
        self._tracer = tracer or NoTracer()
        self._session = session
        self._metrics = metrics
        self._queue_limit = queue_limit
        self._max_wait_s = max_wait_ms / 1000
        self._waiting: deque[_Item] = deque()
        self._running: list[_Item] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._admitted = 0
        self._draining = False
        self._closed = False
        self._image_s: float | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._task: asyncio.Task[None] | None = None
        metrics.queue_limit.set(queue_limit)

    def start(self) -> None:
        """Begin to form batches."""
        self._task = asyncio.create_task(self._serve(), name="batcher")

    @contextmanager
    def reserve(self, images: int) -> Iterator[Admission]:
        """Admit pictures before any work is done for them.

        Args:
            images: How many; all or none are admitted.

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
                retry_after_s=max(1.0, excess * (self._image_s or 0.0)),
            )
        self._give_back(-images)
        admission = Admission(images, self._submit, self._give_back)
        try:
            yield admission
        finally:
            self._metrics.cancelled.inc(admission.close())

    async def drain(self, limit_s: float) -> None:
        """Admit no more, let what is admitted end within `limit_s`, fail the rest, and stop."""
        self._draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        _fail([*self._running, *self._waiting], NotReadyError("The service stopped before this picture was answered."))
        self._waiting.clear()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _give_back(self, places: int) -> None:
        self._admitted -= places
        self._metrics.queue_depth.set(self._admitted)
        if self._admitted:
            self._idle.clear()
        else:
            self._idle.set()

    async def _submit(self, image: _Image) -> Outputs:
        if self._closed:
            raise NotReadyError("The service stopped before this picture was answered.")
        loop = asyncio.get_running_loop()
        item = _Item(image, loop.create_future(), time.monotonic(), self._tracer.here())
        self._waiting.append(item)
        self._arrived.set()
        # Cancelling the caller cancels the future, which is how `_next_batch` knows to drop the item.
        return await item.outputs

    async def _serve(self) -> None:
        while True:
            self._running = await self._next_batch()
            await self._infer(self._running)
            self._running = []

    async def _next_batch(self) -> list[_Item]:
        """Wait for a picture, then for more as `max_wait_ms` allows; the device is free meanwhile."""
        max_batch = self._session.max_batch
        while True:
            self._waiting = deque(item for item in self._waiting if not item.outputs.done())
            left_s = self._left_s()
            if len(self._waiting) >= max_batch or (left_s is not None and left_s <= 0):
                return [self._waiting.popleft() for _ in range(min(max_batch, len(self._waiting)))]
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._arrived.wait()

    def _left_s(self) -> float | None:
        """Seconds for which the first picture may wait on; None if there is none."""
        if not self._waiting:
            return None
        return self._waiting[0].arrived_s + self._max_wait_s - time.monotonic()

    async def _infer(self, batch: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        for item in batch:
            waited_s = time.monotonic() - item.arrived_s
            self._metrics.queue_wait_seconds.observe(waited_s)
            self._tracer.ended("queue", parent=item.place, seconds=waited_s)
        self._metrics.batch_size.observe(len(batch))
        images, sources = [item.image for item in batch], [item.place for item in batch]
        try:
            with self._tracer.span("batch", links=sources, attributes={"leukoscope.batch_size": len(batch)}) as place:
                outputs = await loop.run_in_executor(self._worker, self._compute, images, place)
        except Exception as error:  # noqa: BLE001 - whatever a session raises fails its own batch and no other
            _LOG.exception("a batch of %d pictures failed", len(batch))
            message = str(error) if isinstance(error, InferenceError) else "The model failed on this batch of pictures."
            _fail(batch, InferenceError(message))
        else:
            _answer(batch, outputs)

    def _compute(self, images: list[_Image], place: Place) -> Outputs:
        began_s = time.perf_counter()
        with self._tracer.span("run", parent=place):
            outputs = self._session.run(np.stack(images))
        elapsed_s = time.perf_counter() - began_s
        if len(outputs) != len(images):
            raise InferenceError(f"The model gave {len(outputs)} answers for {len(images)} pictures.")
        self._metrics.inference_seconds.observe(elapsed_s)
        newest_s = elapsed_s / len(images)
        before_s = newest_s if self._image_s is None else self._image_s
        self._image_s = before_s + _NEWEST_SHARE * (newest_s - before_s)
        return outputs


def _fail(items: list[_Item], error: InferenceError | NotReadyError) -> None:
    for item in items:
        if not item.outputs.done():
            # One exception object in many tasks would collect the tracebacks of all of them.
            item.outputs.set_exception(type(error)(str(error)))


def _answer(items: list[_Item], outputs: Outputs) -> None:
    for index, item in enumerate(items):
        row = outputs.row(index)
        if not np.isfinite(row.logits).all():
            _fail([item], InferenceError("The model gave no finite number for this picture."))
        elif not item.outputs.done():
            item.outputs.set_result(row)
