"""The decoded pictures of one request on their way to the engines: in how many calls, and with how many in each."""

import asyncio
import copy
import logging
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app import logs
from app.cluster.messages import Engines, Order, Results
from app.core.errors import InferenceError, LeukoscopeError
from app.inference.deadline import left_s
from app.inference.outputs import Outputs
from app.inference.registry import ModelRef
from app.inference.room import Coming

_LOG: Final = logging.getLogger(__name__)
_NEWEST_SHARE: Final = 0.2  # of the newest call in the running mean of seconds per picture
_Waiting = tuple[NDArray[np.uint8], "asyncio.Future[Outputs]"]

SPREAD: Final = 4
"""How many calls one request has under way at once: it keeps that many engines busy."""


class Pace:
    """How fast the engines answer all requests of this process together.

    Attributes:
        picture_s: Seconds per picture of late; 0 while nothing was answered yet.
    """

    def __init__(self) -> None:
        self.picture_s = 0.0
        self._under_way = 0

    @contextmanager
    def timed(self, images: int) -> Iterator[None]:
        """Measure a call with so many pictures, beside which others may be under way."""
        self._under_way += 1
        began_s = time.monotonic()
        try:
            yield
            newest_s = (time.monotonic() - began_s) / images / self._under_way
            share = _NEWEST_SHARE if self.picture_s else 1.0
            self.picture_s += share * (newest_s - self.picture_s)
        finally:
            self._under_way -= 1


class Outbox:
    """Sends a picture at once while few calls are under way; else pictures gather, and go together.

    So a lone picture waits for nothing, and a large request has few calls, which several engines share.
    """

    def __init__(self, ref: ModelRef, max_batch: int, engines: Engines, timeout_s: float, pace: Pace) -> None:
        """Make an outbox.

        Args:
            ref: The model that the pictures are for.
            max_batch: Most pictures in one call.
            engines: Where they go.
            timeout_s: How long an answer is of use where the request has no deadline.
            pace: Told of each call.
        """
        self._ref = ref
        self._max_batch = max_batch
        self._engines = engines
        self._timeout_s = timeout_s
        self._pace = pace
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, picture: Coming) -> Outputs:
        """Have one picture computed; see `app.inference.runner.Places.submit`."""
        image = await asyncio.wrap_future(picture) if isinstance(picture, Future) else picture
        future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self._waiting.append((image, future))
        self._send()
        return await future

    def close(self) -> None:
        """Give up what is not answered."""
        self._waiting.clear()
        for call in self._calls:
            call.cancel()

    def _send(self) -> None:
        while self._waiting and len(self._calls) < SPREAD:
            parcel = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            call = asyncio.create_task(self._call(parcel))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        if not call.cancelled():
            self._send()

    async def _call(self, parcel: list[_Waiting]) -> None:
        for (_, future), result in zip(parcel, await self._results(parcel), strict=True):
            if future.done():  # its caller is gone
                continue
            if isinstance(result, LeukoscopeError):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _results(self, parcel: list[_Waiting]) -> Results:
        images = np.stack([image for image, _ in parcel])
        time_s = left_s()
        order = Order(self._ref, self._timeout_s if time_s is None else time_s, logs.bound())
        fault: LeukoscopeError
        try:
            with self._pace.timed(len(parcel)):
                results = await self._engines.run(order, images)
                if len(results) == len(parcel):
                    return results
            fault = InferenceError(f"The engine gave {len(results)} answers to {len(parcel)} pictures.")
        except LeukoscopeError as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - logged; the pictures must end
            _LOG.exception("a call of an engine broke")
            fault = InferenceError("The model failed.")
            fault.__cause__ = error
        # One exception object in many tasks would collect the tracebacks of all of them.
        return [copy.copy(fault) for _ in parcel]
