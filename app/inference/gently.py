"""Do the heavy part of loading a model at the lowest priority, while another one serves on the same CPUs."""

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import onnxruntime as ort

from app.inference.providers import CPU_PROVIDER

_LOG: Final = logging.getLogger(__name__)
_ERRORS_ONLY: Final = 3


@contextlib.contextmanager
def optimised(path: Path) -> Iterator[Path | None]:
    """Have ONNX Runtime write a graph as it would run it on this CPU, and give it for a while.

    Most of a session's creation is this. It can be done at the lowest priority only here: threads
    inherit the priority of the thread that makes them, and a session keeps its threads for good.

    Args:
        path: The graph as it was published.

    Yields:
        The optimised graph, to be loaded as it is; None if it can't be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            target = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leukoscope-"))) / path.name
            _at_lowest_priority(lambda: _optimise(path, target))
        except Exception as error:  # noqa: BLE001 - whatever it is, the model can still be loaded the short way
            _LOG.warning("%s can't be optimised beforehand, so requests may be slow while it loads: %s", path, error)
            yield None
        else:
            yield target


def _optimise(path: Path, target: Path) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(target)
    options.log_severity_level = _ERRORS_ONLY  # it warns that the file suits this processor only
    ort.InferenceSession(path, options, providers=[CPU_PROVIDER])


def _at_lowest_priority(call: Callable[[], None]) -> None:
    """Run `call` in a thread of its own, after all other threads of this process."""
    failures: list[Exception] = []

    def run() -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux only: there each thread has its own policy
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
        try:
            call()
        except Exception as error:  # noqa: BLE001 - it is raised in the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run, name="optimise", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
