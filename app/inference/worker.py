"""One thread that runs batches on one device, and says how it fares."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from app.core.errors import DeviceMemoryError, InferenceError, LeukoscopeError
from app.inference.lanes import Batch, Lanes
from app.inference.outputs import Outputs
from app.inference.session import Session
from app.inference.shares import SharingSession
from app.inference.tracing import Tracer
from app.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)

_NEWEST_SHARE: Final = 0.2  # of the newest batch in the running mean of seconds per picture

Deliver = Callable[[Batch, list[Outputs] | LeukoscopeError], None]


class Streak:
    """Counts the batches that have failed since the last that went well, over all workers of a device.

    Attributes:
        length: How many.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.length = 0

    def note(self, *, failed: bool) -> None:
        """Count a batch."""
        with self._lock:
            self.length = self.length + 1 if failed else 0


class Worker:
    """Takes batches and runs them until its queue is closed.

    Attributes:
        picture_s: Seconds per picture of late; 0 while nothing has run yet.
    """

    def __init__(
        self,
        index: int,
        lanes: Lanes,
        deliver: Deliver,
        metrics: Metrics,
        tracer: Tracer,
        failures: Streak,
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make a worker; `start` sets it going.

        Args:
            index: Its place among the workers, and its session's in each model.
            lanes: Where batches come from.
            deliver: Called in this thread with each batch and its rows, or why it failed.
            metrics: Where waits, batches and times are counted.
            tracer: Who hears of waits, batches and runs.
            failures: Where this worker's device counts its failed batches.
            alone: Tells whether no more than one picture is on its way.
        """
        self._index = index
        self._lanes = lanes
        self._deliver = deliver
        self._metrics = metrics
        self._tracer = tracer
        self._failures = failures
        self._alone = alone
        self._began_s: float | None = None
        self.picture_s = 0.0
        # A daemon: a run that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"inference-{index}", daemon=True)

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    def join(self, limit_s: float) -> bool:
        """Wait for the thread's end and return whether it came."""
        if self._thread.ident is not None:
            self._thread.join(limit_s)
        return not self._thread.is_alive()

    @property
    def busy_s(self) -> float:
        """Seconds for which the present batch has been running; 0 between two."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    def _work(self) -> None:
        while self._step():
            pass

    def _step(self) -> bool:
        """Do one thing. Nothing of it is kept while waiting for the next: a model may have been replaced."""
        work = self._lanes.take(self._index)
        if work is None:
            return False
        if not isinstance(work, Batch):
            call, done = work
            _do(call, done.set_result, done.set_exception)
            return True
        self._began_s = time.monotonic()
        try:
            self._deliver(work, self._run(work))
        finally:
            self._began_s = None
        return True

    def _run(self, batch: Batch) -> list[Outputs] | LeukoscopeError:
        now_s = time.monotonic()
        for item in batch.items:
            self._metrics.queue_wait_seconds.observe(now_s - item.arrived_s)
            self._tracer.ended("queue", parent=item.place, seconds=now_s - item.arrived_s)
        self._metrics.batch_size.observe(len(batch.items))
        sized = {"leukoscope.batch_size": len(batch.items)}
        began_s = time.perf_counter()
        try:
            with self._tracer.span("batch", links=[item.place for item in batch.items], attributes=sized):
                rows = self._compute(batch.session, [item.image for item in batch.items])
        except Exception as error:  # noqa: BLE001 - whatever a session raises fails its own batch and no other
            self._failures.note(failed=True)
            _LOG.exception("a batch of %d pictures failed", len(batch.items))
            if isinstance(error, InferenceError | DeviceMemoryError):
                return error
            return InferenceError("The model failed on this batch of pictures.")
        self._note_pace(time.perf_counter() - began_s, len(rows))
        # A model that gives nothing but nonsense has failed too.
        self._failures.note(failed=not any(np.isfinite(row.logits).all() for row in rows))
        return rows

    def _note_pace(self, elapsed_s: float, pictures: int) -> None:
        self._metrics.inference_seconds.observe(elapsed_s)
        newest_s = elapsed_s / pictures
        self.picture_s += (newest_s - self.picture_s) * (_NEWEST_SHARE if self.picture_s else 1)

    def _compute(self, session: Session, images: list[np.ndarray]) -> list[Outputs]:
        try:
            with self._tracer.span("run", parent=self._tracer.here()):
                run = session.run_alone if isinstance(session, SharingSession) and self._alone() else session.run
                outputs = run(images[0][None] if len(images) == 1 else np.stack(images))
        except DeviceMemoryError:
            if len(images) == 1:
                raise
            # Someone else uses the device too: go on with less, rather than fail.
            half = len(images) // 2
            session.max_batch = min(session.max_batch, half)
            _LOG.warning("no memory for %d pictures at once; %d from now on", len(images), session.max_batch)
            return self._compute(session, images[:half]) + self._compute(session, images[half:])
        if len(outputs) != len(images):
            raise InferenceError(f"The model gave {len(outputs)} answers for {len(images)} pictures.")
        return [outputs.row(index) for index in range(len(outputs))]


def _do(call: Callable[[], object], succeeded: Callable[[None], None], failed: Callable[[BaseException], None]) -> None:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - it is raised where the errand was asked for
        failed(error)
    else:
        succeeded(None)
