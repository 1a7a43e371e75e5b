"""How many pictures are at work, and at most: all or none of a request are admitted, and each leaves once."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from app.core.errors import ImageError, NotReadyError, QueueFullError
from app.inference.outputs import Outputs
from app.metrics import Metrics

Coming = NDArray[np.uint8] | Future[NDArray[np.uint8]]
"""A picture of shape ``(size_px, size_px, 3)``, RGB, 0..255, that is there or that a thread still decodes."""

Compute = Callable[[Coming], Awaitable[Outputs]]
"""Has one picture computed."""


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

    def reserve(self, images: int, compute: Compute, leave: Callable[[], None]) -> "Admission":
        """Admit pictures before any work is done for them; see `app.inference.runner.Admits.reserve`.

        Args:
            images: How many; all or none are admitted.
            compute: Has one of them computed.
            leave: Called at the end, to forget those that still wait.

        Returns:
            The places, which end with the block that it is the context of.

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
        return Admission(images, self, compute, leave)

    async def close(self, limit_s: float) -> None:
        """Admit no more, and wait for what is admitted to end, within `limit_s`."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._empty.wait()

    def give_back(self, places: int) -> None:
        """Count places as free again; negative to take them."""
        self.admitted -= places
        self._metrics.queue_depth.set(self.admitted)
        if self.admitted:
            self._empty.clear()
        else:
            self._empty.set()

    def count_cancelled(self, places: int) -> None:
        """Take back the places of pictures that were given up."""
        self.give_back(places)
        self._metrics.cancelled.inc(places)

    def count_failed(self, error: Exception) -> None:
        """Count a picture that ended with an error which is not its own."""
        reasons: dict[type[Exception], str] = {NotReadyError: "stopped", QueueFullError: "refused"}
        self._metrics.failed.labels(reasons.get(type(error), "inference")).inc()


class Admission:
    """Room for the pictures of one request; each gives its place back when it has ended."""

    def __init__(self, images: int, room: Room, compute: Compute, leave: Callable[[], None]) -> None:
        self._places = images
        self._room = room
        self._compute = compute
        self._leave = leave

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._leave()
        abandoned, self._places = self._places, 0
        if abandoned:
            self._room.count_cancelled(abandoned)

    async def submit(self, picture: Coming) -> Outputs:
        """Have one picture computed and give its place back; see `app.inference.runner.Places.submit`."""
        try:
            outputs = await self._compute(picture)
        except ImageError:
            self._release()
            raise
        except Exception as error:  # a cancelled picture keeps its place until the end counts it
            if self._release():
                self._room.count_failed(error)
            raise
        self._release()
        return outputs

    def _release(self) -> bool:
        """Give one place back: this picture has ended. False if all have ended before."""
        if self._places == 0:
            return False
        self._places -= 1
        self._room.give_back(1)
        return True
