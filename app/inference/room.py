"""How many pictures are at work, and at most: all or none of a request are admitted, and each leaves once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from app.core.errors import NotReadyError, QueueFullError
from app.inference.session import Outputs
from app.metrics import Metrics

Compute = Callable[[NDArray[np.uint8]], Awaitable[Outputs]]
"""Has one picture of shape ``(size_px, size_px, 3)`` computed."""


class Room:
    """The places for pictures.

    Attributes:
        admitted: Pictures admitted and not yet ended.
    """

    def __init__(self, metrics: Metrics, limit: int, wait_s: Callable[[int], float]) -> None:
        """Make room.

        Args:
            metrics: Where pictures are counted.
            limit: Most pictures at once.
            wait_s: Estimates when so many of the admitted pictures will have ended, in seconds.
        """
        self._metrics = metrics
        self._limit = limit
        self._wait_s = wait_s
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()
        self.admitted = 0
        metrics.queue_limit.set(limit)
        metrics.queue_depth.set_function(lambda: self.admitted)

    @contextmanager
    def reserve(self, images: int, compute: Compute) -> "Iterator[Admission]":
        """Admit pictures before any work is done for them; see `app.inference.runner.Admits.reserve`.

        Args:
            images: How many; all or none are admitted.
            compute: Has one of them computed.

        Raises:
            QueueFullError: There is no room now.
            NotReadyError: The room is closed.
        """
        if self._closed:
            raise NotReadyError("The service is stopping.")
        excess = self.admitted + images - self._limit
        if excess > 0:
            raise QueueFullError(
                f"{self.admitted} pictures are waiting and at most {self._limit} are admitted.",
                retry_after_s=self._wait_s(excess),
            )
        self._metrics.admitted.inc(images)
        self.give_back(-images)
        admission = Admission(images, self, compute)
        try:
            yield admission
        finally:
            self._metrics.cancelled.inc(admission.close())

    async def close(self, limit_s: float) -> None:
        """Admit no more, and wait for what is admitted to end, within `limit_s`."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._empty.wait()

    def give_back(self, places: int) -> None:
        """Count places as free again; negative to take them."""
        self.admitted -= places
        if self.admitted:
            self._empty.clear()
        else:
            self._empty.set()

    def count_failed(self, error: Exception) -> None:
        """Count a picture that ended with an error which is not its own."""
        reasons: dict[type[Exception], str] = {NotReadyError: "stopped", QueueFullError: "refused"}
        self._metrics.failed.labels(reasons.get(type(error), "inference")).inc()


class Admission:
    """Room for the pictures of one request; each gives its place back when it has ended."""

    def __init__(self, images: int, room: Room, compute: Compute) -> None:
        self._places = images
        self._room = room
        self._compute = compute

    async def submit(self, image: NDArray[np.uint8]) -> Outputs:
        """Have one picture computed and give its place back; see `app.inference.runner.Places.submit`."""
        try:
            outputs = await self._compute(image)
        except Exception as error:  # a cancelled picture keeps its place until `close` counts it
            if self.release():
                self._room.count_failed(error)
            raise
        self.release()
        return outputs

    def release(self) -> bool:
        """Give one place back: this picture has ended. False if all have ended before."""
        if self._places == 0:
            return False
        self._places -= 1
        self._room.give_back(1)
        return True

    def close(self) -> int:
        """Give all other places back and return how many pictures were given up."""
        abandoned, self._places = self._places, 0
        self._room.give_back(abandoned)
        return abandoned
