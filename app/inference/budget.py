"""A bound on the bytes of uploads that are held in memory, over all requests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.core.errors import QueueFullError
from app.metrics import Metrics


class Hold:
    """The bytes that one request holds."""

    def __init__(self, budget: "ByteBudget") -> None:
        self._budget = budget
        self.size = 0

    def add(self, size: int) -> None:
        """Hold more.

        Raises:
            QueueFullError: There is no room for it.
        """
        self._budget.check(size)
        self.size += size
        self._budget.change(size)

    def check(self, size: int) -> None:
        """Refuse early what has announced its size and would not fit now.

        Raises:
            QueueFullError: There is no room for it.
        """
        self._budget.check(size)


class ByteBudget:
    """Counts the bytes of uploads from when they arrive until their request is answered.

    Bytes count as they come, not as they are announced: a client that announces much and sends
    nothing takes no room from the others.
    """

    def __init__(self, limit: int, metrics: Metrics, wait_s: Callable[[], float]) -> None:
        """Make a budget.

        Args:
            limit: Most bytes at once.
            metrics: Where the bytes are shown.
            wait_s: Estimates when there will be room.
        """
        self._limit = limit
        self._metrics = metrics
        self._wait_s = wait_s
        self._held = 0
        metrics.queue_limit_bytes.set(limit)

    @contextmanager
    def hold(self) -> Iterator[Hold]:
        """Hold bytes until the block ends."""
        hold = Hold(self)
        try:
            yield hold
        finally:
            self.change(-hold.size)

    def check(self, size: int) -> None:
        """Raise `QueueFullError` if `size` more bytes don't fit."""
        if self._held + size > self._limit:
            raise QueueFullError(
                f"{self._held:,} bytes of uploads are being worked on and at most {self._limit:,} are admitted.",
                retry_after_s=self._wait_s(),
            )

    def change(self, size: int) -> None:
        """Count bytes as held, or no longer if `size` is negative."""
        self._held += size
        self._metrics.queue_bytes.set(self._held)
