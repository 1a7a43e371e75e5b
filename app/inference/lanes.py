"""The queue between requests and workers: fair over requests, one model to a batch, thread-safe."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import asyncio

from app.inference.outputs import Outputs
from app.inference.session import Session
from app.inference.tracing import Place


@dataclass(slots=True, eq=False)
class Item:
    """One picture on its way.

    Attributes:
        image: Shape ``(size_px, size_px, 3)``; something else until it is in a lane.
        outputs: Where its end is told; belongs to the event loop.
        arrived_s: When it came, on the monotonic clock.
        place: Of its request in a trace.
        dropped: Whether its caller has given it up; set by the event loop, read by workers.
    """

    image: NDArray[np.uint8]
    outputs: "asyncio.Future[Outputs]"
    arrived_s: float
    place: Place = None
    dropped: bool = False


@dataclass(slots=True, eq=False)
class Lane:
    """The waiting pictures of one request, all for one model.

    Attributes:
        sessions: The model, once for each worker.
        items: In the order of the request.
    """

    sessions: tuple[Session, ...]
    items: deque[Item] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a worker runs next."""

    session: Session
    items: list[Item]


Errand = tuple[Callable[[], object], "Future[None]"]


class Lanes:
    """Pictures of many requests, taken by turns.

    A batch takes one picture of each request in turn, so that a request with one picture waits
    for as many others as there are requests, however many pictures those have. Models take
    turns by the batch. Workers that wait for something to do get their share of it.
    """

    def __init__(self, workers: int, max_wait_s: float = 0) -> None:
        """Make an empty queue.

        Args:
            workers: How many threads will call `take`.
            max_wait_s: How long a batch that is not full waits, from its first picture on.
        """
        self._max_wait_s = max_wait_s
        self._changed = threading.Condition()
        self._closed = False
        self._idle = 0
        # By model, those lanes that have a picture; the models in the order of their turns.
        self._lanes: dict[tuple[Session, ...], deque[Lane]] = {}
        self._errands: list[deque[Errand]] = [deque() for _ in range(workers)]

    def put(self, lane: Lane, item: Item) -> None:
        """Append a picture to its request's lane."""
        with self._changed:
            if not lane.items:
                self._lanes.setdefault(lane.sessions, deque()).append(lane)
            lane.items.append(item)
            self._changed.notify()

    def discard(self, lane: Lane) -> None:
        """Forget what still waits in a lane; its request has ended."""
        with self._changed:
            if not lane.items:
                return
            lane.items.clear()
            self._lanes[lane.sessions].remove(lane)

    def errand(self, worker: int, call: Callable[[], object]) -> "Future[None]":
        """Have a worker do something between two batches, before those that wait."""
        done: Future[None] = Future()
        with self._changed:
            if self._closed:
                done.cancel()
                return done
            self._errands[worker].append((call, done))
            self._changed.notify_all()
        return done

    def take(self, worker: int) -> Batch | Errand | None:
        """Wait for work; None once the queue is closed."""
        with self._changed:
            while not self._closed:
                if self._errands[worker]:
                    return self._errands[worker].popleft()
                wait_s = self._wait_s(worker)
                if wait_s is None or wait_s > 0:
                    self._idle += 1
                    self._changed.wait(wait_s)
                    self._idle -= 1
                    continue
                batch = self._pick(worker)
                if batch.items:
                    return batch
            return None

    def close(self) -> None:
        """Send the workers home; what waits stays with its callers."""
        with self._changed:
            self._closed = True
            for errands in self._errands:
                for _, done in errands:
                    done.cancel()
                errands.clear()
            self._changed.notify_all()

    def _wait_s(self, worker: int) -> float | None:
        """Seconds until a batch may start; None if there is nothing to run."""
        self._lanes = {sessions: lanes for sessions, lanes in self._lanes.items() if lanes}
        if not self._lanes:
            return None
        if not self._max_wait_s:
            return 0
        sessions, lanes = next(iter(self._lanes.items()))
        if sum(len(lane.items) for lane in lanes) >= sessions[worker].max_batch:
            return 0
        oldest_s = min(lane.items[0].arrived_s for lane in lanes)
        return max(0.0, oldest_s + self._max_wait_s - time.monotonic())

    def _pick(self, worker: int) -> Batch:
        sessions, lanes = next(iter(self._lanes.items()))
        del self._lanes[sessions]
        self._lanes[sessions] = lanes  # last in turn now
        session = sessions[worker]
        # Leave workers that have nothing to do their share.
        share = -(-sum(len(lane.items) for lane in lanes) // (self._idle + 1))
        limit = min(session.max_batch, share)
        items: list[Item] = []
        while lanes and len(items) < limit:
            lane = lanes.popleft()
            item = lane.items.popleft()
            if lane.items:
                lanes.append(lane)
            if not item.dropped:
                items.append(item)
        return Batch(session, items)
