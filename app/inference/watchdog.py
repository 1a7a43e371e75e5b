"""See when a run hangs or a device fails, say so, and notice when it is well again."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from app.inference.batcher import Batcher

_LOG: Final = logging.getLogger(__name__)
_FAILURES: Final = 3  # batches in a row, after which it is not the batches
_LOOKS: Final = 10  # during the time limit of a run
_LONGEST_PAUSE_S: Final = 1.0


class Watchdog:
    """Watches the workers.

    A run that takes longer than its limit hangs: nothing can stop it from outside, so all
    waiting pictures are told, and the process is no longer alive in the sense of `/livez`.
    A device whose batches fail one after another is tried with the golden picture until it
    reproduces that again.

    Attributes:
        complaint: What is wrong; None if nothing is.
    """

    def __init__(
        self, batcher: Batcher, self_tests: Callable[[], list[Callable[[], None]]], run_timeout_s: float
    ) -> None:
        """Make a watchdog; `start` sets it going.

        Args:
            batcher: What is watched.
            self_tests: Gives a test for each worker, which raises if its device is not well.
            run_timeout_s: Longest that a batch may run.
        """
        self._batcher = batcher
        self._self_tests = self_tests
        self._run_timeout_s = run_timeout_s
        self._since_s: float | None = None
        self._hung = False
        self._task: asyncio.Task[None] | None = None
        self.complaint: str | None = None

    @property
    def alive(self) -> bool:
        """False when a run hangs, or the device has failed for longer than a run may take."""
        if self._hung:
            return False
        return self._since_s is None or time.monotonic() - self._since_s <= self._run_timeout_s

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name="watchdog")

    def stop(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        pause_s = min(_LONGEST_PAUSE_S, self._run_timeout_s / _LOOKS)
        while True:
            await asyncio.sleep(pause_s)
            if self._batcher.busy_s > self._run_timeout_s:
                self._hangs()
            elif self._batcher.failures >= _FAILURES:
                self._complain(f"The last {self._batcher.failures} batches failed.")
                await self._test()
            elif self.complaint is not None:
                _LOG.warning("the model answers again")
                self.complaint, self._since_s, self._hung = None, None, False
                self._batcher.resume()

    def _hangs(self) -> None:
        self._complain(f"A batch has been running for more than {self._run_timeout_s:g} s; a restart is needed.")
        self._hung = True
        self._batcher.fail_all("The model hangs; this picture was given up.")

    def _complain(self, complaint: str) -> None:
        if self.complaint is None:
            self._since_s = time.monotonic()
            _LOG.critical("%s", complaint)
        self.complaint = complaint

    async def _test(self) -> None:
        tests = self._self_tests()
        try:
            for worker, test in enumerate(tests):
                await asyncio.to_thread(self._batcher.run_on, worker, test)
        except Exception as error:  # noqa: BLE001 - any failure means: not well yet
            _LOG.warning("the self-test failed: %s", error)
        else:
            self._batcher.forgive()
