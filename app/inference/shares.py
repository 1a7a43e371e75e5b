"""Share a CPU's threads out over pictures: each computes whole ones, unless there is one alone."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.inference.outputs import Outputs
from app.inference.session import Session

_THREADS_NAME: Final = "inference-share"
# A picture is alone if nothing runs and nothing has ended for so long. Under load two callers may end together, and
# the first of them would take all threads from the other: measured with 16 connections, a tenth of all runs.
_QUIET_S: Final = 0.003


class SharingSession:
    """A CPU's session: a lone picture gets all threads; of several, each thread gets its own.

    Threads that share a picture wait for one another after each of its operators, and much longer
    where decoding and answering want the same cores. With as many callers as threads nobody waits at all: each
    caller's batch runs on one thread. With one caller, its threads meet once a batch.

    Attributes:
        wide: Uses all threads for each call; not called by two threads at once.
        narrow: Uses one thread for each call; its `run` may be called by several threads at once.
        max_batch: As in `Session`.
        provider: As in `Session`.
    """

    def __init__(self, wide: Session, narrow: Session, threads: int, callers: int = 1) -> None:
        """Make a session of two.

        Args:
            wide: Uses all threads for each call; not called by two threads at once.
            narrow: Uses one thread for each call; its `run` may be called by several threads at once.
            threads: How many, 2 or more.
            callers: How many call `run` at the same time, at most.
        """
        self._threads = threads
        self._callers = callers
        self._lock = threading.Lock()
        self._running = 0
        self._ended_s = -math.inf
        self.wide = wide
        self.narrow = narrow
        self.max_batch = wide.max_batch if callers == 1 else narrow.max_batch
        self.provider: str = wide.provider

    def run_alone(self, images: NDArray[np.uint8]) -> Outputs:
        """Do as `run` for a caller who knows that no other picture is on its way, however short ago one has ended."""
        with self._counted():
            if self._running == 1 and len(images) == 1:  # one that was given up may still run
                return self.wide.run(images)
        return self.run(images)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs; see `Session.run`."""
        with self._counted() as alone:
            if len(images) == 1 and (alone or self._callers == 1):
                return self.wide.run(images)
            if self._callers > 1:
                return self.narrow.run(images)
            return self._split(images)

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        """Count a run, and tell whether it is alone."""
        with self._lock:
            self._running += 1
            alone = self._running == 1 and time.monotonic() - self._ended_s > _QUIET_S
        try:
            yield alone
        finally:
            with self._lock:
                self._running -= 1
                self._ended_s = time.monotonic()

    def _split(self, images: NDArray[np.uint8]) -> Outputs:
        shares = np.array_split(images, min(self._threads, len(images)))
        # Threads for this batch alone: starting them takes less than a hundredth of it, and none has to be
        # ended with the model. Leaving the block waits for all, so that a batch which has failed does not go
        # on behind the next one's back. The caller's thread is one of them.
        with ThreadPoolExecutor(len(shares) - 1, thread_name_prefix=_THREADS_NAME) as pool:
            others = [pool.submit(self.narrow.run, share) for share in shares[1:]]
            first = self.narrow.run(shares[0])
        return Outputs.joined([first, *(other.result() for other in others)])
