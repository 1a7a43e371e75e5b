"""The part of bulk scoring that runs in Ray's workers: entries in, rows out, one model in each worker.

Entries and rows travel as Arrow tables, and the model's files with them: whatever lies on a worker's own
disk, all workers answer with the model that the command has verified.
"""

import asyncio
import os
import tempfile
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa

from app.core.active import write_active
from app.folder.answers import IN_FLIGHT, InProcess
from app.folder.errors import FolderError
from app.folder.rows import COLUMNS, Row
from app.folder.runner import Runner
from app.folder.sources import Entry, Reader
from app.folder.stores import StoredFile
from app.folder.subjects import SubjectRule
from app.inference.registry import ModelRef, Registry
from app.settings import Settings

# Why the worker can't go on; None in every row of a picture.
STOPPED: Final = "stopped"
_KINDS: Final = dict.fromkeys(("confidence", "p_all", "p_hem"), pa.float64()) | {"review": pa.bool_()}
_ROWS: Final = pa.schema([(column, _KINDS.get(column, pa.string())) for column in (*COLUMNS, STOPPED)])
_ENTRIES: Final = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.binary()),  # a name need not be valid text
        ("url", pa.string()),
        ("member", pa.string()),
        ("size", pa.int64()),
        ("problem", pa.string()),
    ]
)

_T = TypeVar("_T")


class Scorer:
    """Answers entries with the classifier that serves `/predict`; Ray makes one in each worker."""

    def __init__(self, settings: Settings, files: Mapping[str, bytes], ref: ModelRef, subject_of: SubjectRule) -> None:
        """Load the model; if it can't be loaded, the first call says so.

        Args:
            settings: The command's, with this worker's threads and device.
            files: The model's files, by their names.
            ref: The model.
            subject_of: Whose cell it is.
        """
        self._subject_of = subject_of
        self._reader = Reader(settings.max_request_bytes)
        # The engine's tasks live between calls, too.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="scorer", daemon=True).start()
        self._problem: str | None = None
        with tempfile.TemporaryDirectory(prefix="leukoscope-") as folder:
            changes = {"models_dir": unpack_model(Path(folder), files, ref), "resident": ()}
            self._answerer = InProcess(settings.model_copy(update=changes))
            try:
                self._do(self._answerer.__aenter__())
            except FolderError as error:
                self._problem = str(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Answer a table of entries.

        Returns:
            A table of rows. If model or store fail, its last row holds nothing but the reason, as `STOPPED`.
        """
        rows, problem = _Rows(), self._problem
        if problem is None:
            runner = Runner(self._answerer, self._reader, rows, self._subject_of)
            try:
                self._do(runner.run(list(entries_of(table)), lambda _: None))
            except FolderError as error:
                problem = str(error)
        return table_of_rows(rows.all, problem)

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class _Rows:
    """A sink that keeps rows in memory."""

    def __init__(self) -> None:
        self.all: list[Row] = []

    def rows(self) -> Iterator[Row]:
        return iter(())

    def append(self, rows: Iterable[Row]) -> None:
        self.all += rows

    def close(self, *, finished: bool) -> None:
        pass


def worker_settings(settings: Settings, cpus: int) -> Settings:
    """Return the settings of a worker that has some CPUs, and of GPUs, if any, only its own."""
    most = max(settings.queue_limit, IN_FLIGHT)
    changes = {"inference_threads": cpus, "decode_threads": cpus, "gpus": (0,), "queue_limit": most}
    # Keys are no business of workers.
    return settings.model_copy(update=changes | {"api_keys": "", "admin_keys": ""})


def pack_model(registry: Registry, ref: ModelRef) -> dict[str, bytes]:
    """Return the files of a model's folder by their names.

    Raises:
        ModelError: The model is not installed, or not whole.
    """
    registry.verified(ref)
    return {path.name: path.read_bytes() for path in registry.folder(ref).iterdir() if path.is_file()}


def unpack_model(models_dir: Path, files: Mapping[str, bytes], ref: ModelRef) -> Path:
    """Write a model's files where a registry finds them, as the active model; return `models_dir`."""
    folder = Registry(models_dir).folder(ref)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_active(models_dir, ref.name, ref.version)
    return models_dir


def table_of_entries(entries: Sequence[Entry]) -> pa.Table:
    """Return entries as a table."""
    records = [
        {
            "key": entry.key,
            "path": None if isinstance(entry.path, StoredFile) else os.fsencode(entry.path.absolute()),
            "url": entry.path.url if isinstance(entry.path, StoredFile) else None,
            "member": entry.member,
            "size": entry.size,
            "problem": entry.problem,
        }
        for entry in entries
    ]
    return pa.Table.from_pylist(records, schema=_ENTRIES)


def entries_of(table: pa.Table) -> Iterator[Entry]:
    """Read a table of entries."""
    for record in table.to_pylist():
        path, url = record.pop("path"), record.pop("url")
        yield Entry(path=Path(os.fsdecode(path)) if url is None else StoredFile(url), **record)


def table_of_rows(rows: Iterable[Row], problem: str | None) -> pa.Table:
    """Return rows as a table, with a row at the end that says what is wrong, if something is."""
    records = [row.record() for row in rows]
    return pa.Table.from_pylist(records if problem is None else [*records, {STOPPED: problem}], schema=_ROWS)


def rows_of(table: pa.Table) -> tuple[list[Row], str | None]:
    """Read a table of rows, and what is wrong."""
    records = table.to_pylist()
    problems = [record.pop(STOPPED) for record in records]
    answered = [Row.from_record(record) for record, problem in zip(records, problems, strict=True) if problem is None]
    return answered, next((problem for problem in problems if problem is not None), None)
