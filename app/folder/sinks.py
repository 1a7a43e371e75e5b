"""Where rows go: a file that is only ever added to, so that a run can stop at any moment and go on later."""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from app.folder.errors import StoppedError, UsageError
from app.folder.formats import Csv, Format, JsonLines
from app.folder.parquet import PARQUET_SUFFIX, ParquetTable
from app.folder.rows import Row

_FORMATS: Final[dict[str, Format]] = {".csv": Csv(), ".jsonl": JsonLines()}


class Sink(Protocol):
    """What the runner writes to."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are there from an earlier run."""

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; after it they survive the end of this process."""

    def close(self, *, finished: bool) -> None:
        """Let go of the file; `finished` says that every picture has its row."""


def open_sink(out: Path | None, *, fresh: bool, retry_failed: bool) -> Sink:
    """Open an output on this machine.

    Args:
        out: A .csv, .jsonl or .parquet file; None writes CSV to standard output.
        fresh: Begin anew, whatever is there.
        retry_failed: Take out the rows with an error, so that their pictures are tried again.

    Raises:
        UsageError: Another suffix, no such folder, or a file that holds something else.
    """
    if out is None:
        return StandardOutput()
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}")
    sink: Sink
    if out.suffix.lower() == PARQUET_SUFFIX:
        table = ParquetTable(out)
        table.prepare(fresh=fresh)
        sink = _ThenParquet(FileSink(table.journal, JsonLines(), fresh=fresh, retry_failed=retry_failed), table)
    elif out.suffix.lower() in _FORMATS:
        sink = FileSink(out, _FORMATS[out.suffix.lower()], fresh=fresh, retry_failed=retry_failed)
    else:
        raise UsageError(f"{out}: expected a name that ends in .csv, .jsonl or .parquet")
    return sink


class StandardOutput:
    """CSV on standard output; nothing to resume."""

    def __init__(self) -> None:
        self._format = Csv()
        self._out = sys.stdout.buffer
        self._out.write(self._format.header())

    def rows(self) -> Iterator[Row]:
        """Yield nothing."""
        return iter(())

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows."""
        self._out.write(self._format.encode(rows))
        self._out.flush()

    def close(self, *, finished: bool) -> None:  # noqa: ARG002 - the same either way
        """Write what is still held back."""
        self._out.flush()


class FileSink:
    """Appends to one file. A row that an earlier end of the process cut in half is taken off first."""

    def __init__(self, path: Path, form: Format, *, fresh: bool, retry_failed: bool) -> None:
        self._path = path
        self._format = form
        try:
            # Unbuffered: what `append` has written is the kernel's, and survives a kill of this process.
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise UsageError(f"{path}: can't be written: {error.strerror}") from error
        try:
            _lock(self._file, path)
            self._repair(fresh)
        except BaseException:
            self._file.close()
            raise
        if retry_failed:
            self._drop_failed()

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are there.

        Raises:
            UsageError: The file is of something else.
        """
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                yield from self._format.decode(file)
        except (ValueError, TypeError) as error:  # csv and json raise these, and UnicodeDecodeError is one
            raise UsageError(
                f"{self._path}: has a row that is none of this command's ({error}); "
                "name another --out, or start anew with --fresh"
            ) from error

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows at the end.

        Raises:
            StoppedError: The disk takes no more.
        """
        data = memoryview(self._format.encode(rows))
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise StoppedError(f"{self._path}: can't be written: {error.strerror}") from error

    def close(self, *, finished: bool) -> None:
        """Bring the file to the disk when it is whole, and let go of it."""
        if finished:
            os.fsync(self._file.fileno())
        self._file.close()

    def _repair(self, fresh: bool) -> None:
        """Cut the file after its last whole row; an empty one gets its header."""
        data = b"" if fresh else self._path.read_bytes()
        opening = self._format.opening
        if not (data.startswith(opening) or opening.startswith(data)):
            raise UsageError(
                f"{self._path}: is there already, but is no output of this command; "
                "name another --out, or start anew with --fresh"
            )
        whole = self._format.whole(data)
        self._file.truncate(whole)
        self._file.seek(whole)
        if whole == 0:
            self._file.write(self._format.header())

    def _drop_failed(self) -> None:
        kept = self._path.with_name(self._path.name + ".kept")
        with kept.open("wb") as file:
            file.write(self._format.header())
            file.write(self._format.encode(row for row in self.rows() if row.error is None))
        self._file.close()
        kept.replace(self._path)
        self._file = self._path.open("r+b", buffering=0)
        _lock(self._file, self._path)
        self._file.seek(0, os.SEEK_END)


class _ThenParquet:
    """A JSON Lines file that becomes a Parquet table when the run is finished."""

    def __init__(self, journal: FileSink, table: ParquetTable) -> None:
        self._journal = journal
        self._table = table

    def rows(self) -> Iterator[Row]:
        return self._journal.rows()

    def append(self, rows: Iterable[Row]) -> None:
        self._journal.append(rows)

    def close(self, *, finished: bool) -> None:
        self._journal.close(finished=finished)
        if finished:
            self._table.finish()


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep a second run off the same file, where the system can; the lock ends with the process."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"{path}: another run is writing to it") from error
