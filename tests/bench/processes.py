"""A contender's processes: started on its CPUs, measured with all their children, and ended. Linux only."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_PATIENCE_S: Final = 20.0


def split_cpus() -> tuple[set[int], set[int]]:
    """Return the CPUs of the server and of the client: one of four or more is the client's own, else all are shared."""
    cpus = sorted(os.sched_getaffinity(0))
    return (set(cpus[:-1]), set(cpus[-1:])) if len(cpus) >= 4 else (set(cpus), set(cpus))


class Processes:
    """A command in a session of its own, with what it starts in turn."""

    def __init__(
        self, command: Sequence[str], *, cwd: Path, environment: dict[str, str], cpus: set[int], log: Path
    ) -> None:
        """Start it.

        Args:
            command: What to run.
            cwd: Where.
            environment: All variables.
            cpus: On which CPUs.
            log: Where its output goes.
        """
        self.log = log
        with log.open("ab") as file:
            self._popen = subprocess.Popen(  # noqa: S603 - the commands are our own
                command,
                cwd=cwd,
                env=environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        # Before it has had time to start a child or to count its CPUs.
        os.sched_setaffinity(self._popen.pid, cpus)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        family = self._family()
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_PATIENCE_S)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._popen.poll() is not None

    def cpu_s(self) -> float:
        """Return the CPU seconds that all of them have used, those that ended included."""
        return sum(_cpu_s(pid) for pid in self._family())

    def main_thread_s(self) -> float:
        """Return the CPU seconds that the command's first thread has used: in this service the event loop's."""
        pid = self._popen.pid
        return int(_read(_PROC / f"{pid}/task/{pid}/schedstat").split()[0]) / 1e9

    def rss_bytes(self) -> int:
        """Return the memory of all of them; pages that they share are counted once for each."""
        return sum(_rss_bytes(pid) for pid in self._family())

    def _family(self) -> list[int]:
        family, found = [self._popen.pid], [self._popen.pid]
        while found:
            pid = found.pop()
            children = [child for task in _PROC.glob(f"{pid}/task/*/children") for child in _read(task).split()]
            found += map(int, children)
            family += map(int, children)
        return family


def _cpu_s(pid: int) -> float:
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS if fields else 0.0


def _rss_bytes(pid: int) -> int:
    fields = _read(_PROC / str(pid) / "statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:  # it has ended meanwhile
        return ""
