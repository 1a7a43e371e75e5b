"""`leukoscope predict --ray`: the same rows, answered by a model in each of many Ray workers, through Ray Data."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from app.core.errors import LeukoscopeError
from app.cpus import usable_cpus
from app.folder.errors import StoppedError, UsageError
from app.folder.rows import Row
from app.folder.runner import chunks
from app.folder.sinks import Sink
from app.folder.sources import Entry
from app.folder.subjects import SubjectRule
from app.inference.registry import ModelRef, Registry
from app.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

RAY_ADDRESS: Final = "RAY_ADDRESS"
# Pictures that a worker takes at once: seconds of work, after which their rows are written.
_TASK_ON_CPU: Final = 64
_TASK_ON_GPU: Final = 512
# Of a Ray that is started here: the model and some tables.
_OBJECT_STORE_BYTES: Final = 512 * 1024 * 1024
_KNOCK_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers there are, and what each has."""

    count: int
    cpus: int
    gpus: int


class OnRay:
    """Answers entries on Ray, in an ``async with`` block: on the cluster of `RAY_ADDRESS`, or on one of its own."""

    def __init__(self, settings: Settings, sink: Sink, subject_of: SubjectRule, workers: int | None) -> None:
        """Check that Ray and the model are there.

        Args:
            settings: The command's; ``inference_threads`` are the CPUs of each worker.
            sink: Where rows go.
            subject_of: Whose cell it is.
            workers: How many; None for as many as the cluster has room for.

        Raises:
            UsageError: Ray is not installed.
            StoppedError: The model can't be used.
        """
        check_ray()
        from app.folder.scorer import pack_model  # noqa: PLC0415 - needs the extra

        self._settings, self._sink, self._subject_of, self._workers = settings, sink, subject_of, workers
        registry = Registry(settings.models_dir)
        try:
            self.model: ModelRef = registry.active()
            self._files = pack_model(registry, self.model)
        except (LeukoscopeError, OSError) as error:
            raise StoppedError(f"the model can't be used: {error}") from error

    async def __aenter__(self) -> Self:
        """Start Ray, or join a cluster."""
        start_ray()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop Ray, or leave the cluster; workers that still answer are given up."""
        import ray  # noqa: PLC0415 - an optional extra

        ray.shutdown()

    async def run(self, entries: Sequence[Entry], on_rows: Callable[[Sequence[Row]], None]) -> None:
        """Answer entries and write their rows, in the order in which they are answered.

        Args:
            entries: Those that have no row yet.
            on_rows: Called with rows, once they are written.

        Raises:
            UsageError: The cluster has no room for a worker.
            StoppedError: Model, store or cluster failed, or the disk is full.
        """
        import ray.data.exceptions  # noqa: PLC0415 - an optional extra

        from app.folder.scorer import rows_of  # noqa: PLC0415 - as above

        try:
            with _interruptible():
                for table in self._answered(entries):
                    rows, problem = rows_of(table)
                    self._sink.append(rows)
                    on_rows(rows)
                    if problem is not None:
                        raise StoppedError(problem)
        except ray.exceptions.RayError as error:  # begins with the worker's whole traceback
            raise StoppedError(f"Ray: {_lines(error)[-1]}") from error
        except ray.data.exceptions.ExecutionTimeoutError as error:  # ends with advice to programmers
            raise StoppedError(f"Ray: {_lines(error)[0]}") from error

    def _answered(self, entries: Sequence[Entry]) -> "Iterator[pa.Table]":
        """Yield tables of rows as they come from the workers."""
        import ray.data  # noqa: PLC0415 - an optional extra

        from app.folder.scorer import Scorer, table_of_entries, worker_settings  # noqa: PLC0415 - as above

        workers = choose_workers(self._settings, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        size = _TASK_ON_GPU if workers.gpus else _TASK_ON_CPU
        tables = [table_of_entries(task) for task in chunks(entries, size, sys.maxsize)]
        settings = worker_settings(self._settings, workers.cpus)
        scored = ray.data.from_arrow(tables).map_batches(
            Scorer,
            fn_constructor_args=(settings, self._files, self.model, self._subject_of),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(self._workers or workers.count, len(tables))),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
        )
        return iter(scored.iter_batches(batch_size=None, batch_format="pyarrow"))


def start_ray() -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start Ray on this machine; nothing is told to Ray's makers.

    Raises:
        StoppedError: There is no such cluster, or Ray does not start.
    """
    # What Ray reads when it is loaded.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a thread that ends late would start another Ray
    import ray.data  # noqa: PLC0415 - an optional extra

    address = os.environ.get(RAY_ADDRESS)
    if address:
        _knock(address)
    own: dict[str, Any] = {
        "num_cpus": usable_cpus(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        ray.init(
            address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own)
        )
    except Exception as error:  # a plain Exception, where Ray takes too long to start
        where = f"used at {RAY_ADDRESS}={address}" if address else "started here"
        raise StoppedError(f"Ray can't be {where}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _knock(address: str) -> None:
    """Find out at once whether anybody listens at a cluster's address; Ray itself tries for minutes.

    Raises:
        StoppedError: Nobody does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):  # a word such as "auto", which Ray looks up by itself
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise StoppedError(f"Ray can't be used at {RAY_ADDRESS}={address}: {error}") from error


def check_ray() -> None:
    """Find out without loading it whether Ray is there.

    Raises:
        UsageError: It, or what its Data needs, is not installed.
    """
    missing = [name for name in ("ray", "pyarrow", "pandas") if find_spec(name) is None]
    if missing:
        raise UsageError(f"--ray needs Ray, but {missing[0]} is not installed: pip install 'leukoscope[ray]'")


def choose_workers(settings: Settings, nodes: Sequence[Mapping[str, float]]) -> Workers:
    """Fill a cluster: a worker for each GPU, or without GPUs for each so many CPUs of a node.

    Args:
        settings: ``device``, ``inference_threads`` and ``decode_threads`` count.
        nodes: What each node has, by Ray's names.

    Raises:
        UsageError: No node has room for one.
    """
    with_gpu = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpu and settings.device != "cpu":
        shares = [int(node.get("CPU", 0) // node["GPU"]) for node in with_gpu]
        cpus = settings.decode_threads or max(1, min(shares))
        return Workers(sum(int(node["GPU"]) for node in with_gpu), cpus, 1)
    if settings.device == "cuda":
        raise UsageError("LEUKOSCOPE_DEVICE=cuda: no node of the cluster has a GPU")
    sizes = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    cpus = settings.inference_threads or min(sizes, default=1)
    count = sum(size // cpus for size in sizes)
    if not count:
        raise UsageError(f"no node of the cluster has the {cpus} CPUs of one worker (LEUKOSCOPE_INFERENCE_THREADS)")
    return Workers(count, cpus, 0)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let signals end what waits for Ray: the event loop, which hears them else, stands still meanwhile."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _lines(error: Exception) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
