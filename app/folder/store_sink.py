"""The output in an object store: rows go there in numbered parts, which become one Parquet file at the end.

Beside ``results.parquet`` lie, until it is whole, ``results.parquet.parts/000001.jsonl`` and so on: JSON Lines,
each written whole or not at all and never changed. What a kill can cost is the rows that wait for their part.
A run begins with a part of its own, empty: an earlier one that still lives finds its next number taken, and stops.
"""

import io
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

from app.folder.errors import StoppedError, UsageError
from app.folder.formats import JsonLines
from app.folder.parquet import PARQUET_SUFFIX, ParquetTable
from app.folder.rows import Row
from app.folder.sinks import FileSink
from app.folder.stores import file_system, said

PART_ROWS: Final = 8192
PART_PAUSE_S: Final = 10.0
_PART: Final = re.compile(r"(\d+)\.jsonl")

_T = TypeVar("_T")


class StoreSink:
    """A Parquet file behind a URL, with its parts while the run is not finished.

    All rows also stand in a file on the local disk, of which the Parquet file is made.
    """

    def __init__(
        self,
        url: str,
        *,
        fresh: bool,
        retry_failed: bool,
        part_rows: int = PART_ROWS,
        part_pause_s: float = PART_PAUSE_S,
    ) -> None:
        """Take up what is there, and write a first part, so that it is known now if nothing can be written.

        Args:
            url: Of the Parquet file.
            fresh: Begin anew; what is there is deleted.
            retry_failed: Take out the rows with an error.
            part_rows: Most rows that wait for their part.
            part_pause_s: Longest that they wait while rows come.

        Raises:
            UsageError: No name of a Parquet file, a store that can't be used, or a file that holds something else.
        """
        if not url.lower().endswith(PARQUET_SUFFIX):
            raise UsageError(f"{url}: expected a URL that ends in {PARQUET_SUFFIX}")
        self._url = url
        self._system, self._path = file_system(url)
        self._part_rows, self._part_pause_s = part_rows, part_pause_s
        self._format = JsonLines()
        self._waiting: list[Row] = []
        self._written_s = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="leukoscope-")
        self._local = Path(self._folder.name, PurePosixPath(self._path).name)
        try:
            with self._as_url():
                self._table = ParquetTable(self._local)
                self._journal = self._take_up(fresh, retry_failed)
        except BaseException:
            self._folder.cleanup()
            raise

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are there, each file's once."""
        return self._journal.rows()

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows; they survive this process once their part is written.

        Raises:
            StoppedError: The store takes no more, or another run writes there too.
        """
        rows = list(rows)
        self._journal.append(rows)
        self._waiting += rows
        if len(self._waiting) >= self._part_rows or time.monotonic() - self._written_s >= self._part_pause_s:
            self._flush()

    def close(self, *, finished: bool) -> None:
        """Write what waits; if every picture has its row, write the Parquet file and delete the parts.

        Raises:
            StoppedError: The store takes no more; the parts that are there are kept.
        """
        try:
            self._flush()
            self._journal.close(finished=finished)
            if finished:
                self._finish()
        finally:
            self._journal.close(finished=False)
            self._folder.cleanup()

    def _take_up(self, fresh: bool, retry_failed: bool) -> FileSink:
        """Gather the rows of earlier runs in the journal, and make room for new parts."""
        parts = self._reading(self._parts)
        self._number = max(parts, default=0)
        if not fresh:
            if self._reading(lambda: self._system.exists(self._path)):
                self._reading(lambda: self._system.get_file(self._path, str(self._local)))
            self._table.prepare(fresh=False)
            with self._open_journal() as journal:
                self._gather(journal, parts)
        journal = FileSink(self._table.journal, self._format, fresh=fresh, retry_failed=retry_failed)
        try:
            # Kept rows stand in a part of their own before those with the failed ones go.
            self._put(self._table.journal.read_bytes() if retry_failed else b"")
            if fresh or retry_failed:
                self._delete([self._path, *parts.values()])
        except StoppedError as error:
            journal.close(finished=False)
            raise UsageError(str(error)) from error
        return journal

    @contextmanager
    def _open_journal(self) -> Iterator[FileSink]:
        journal = FileSink(self._table.journal, self._format, fresh=False, retry_failed=False)
        try:
            yield journal
        finally:
            journal.close(finished=False)

    def _gather(self, journal: FileSink, parts: dict[int, str]) -> None:
        # A run that was killed while it deleted its parts leaves rows both in them and in the Parquet file.
        seen = {row.file for row in journal.rows()}
        for _, part in sorted(parts.items()):
            data: bytes = self._reading(partial(self._system.cat_file, part))
            try:
                rows = list(self._format.decode(io.StringIO(data.decode(), newline="\n")))
            except (ValueError, TypeError) as error:
                raise UsageError(f"{part}: is no part of this command's output: {error}") from error
            journal.append([row for row in rows if row.file not in seen])
            seen.update(row.file for row in rows)

    def _parts(self) -> dict[int, str]:
        """Return the paths of the parts by their numbers."""
        self._system.invalidate_cache()
        named = {path: _PART.fullmatch(PurePosixPath(path).name) for path in self._system.find(self._parts_folder)}
        return {int(match[1]): path for path, match in named.items() if match}

    @property
    def _parts_folder(self) -> str:
        return f"{self._path}.parts"

    def _flush(self) -> None:
        if self._waiting:
            self._put(self._format.encode(self._waiting))
            self._waiting = []
        self._written_s = time.monotonic()

    def _put(self, data: bytes) -> None:
        """Write the next part; where it is there already, another run is at work."""
        self._number += 1
        try:
            # A store has no folders, but not everything behind a URL is a store.
            if self._number == 1 and not self._system.isdir(self._parts_folder):
                self._system.mkdir(self._parts_folder, create_parents=False)
            self._system.pipe_file(f"{self._parts_folder}/{self._number:06}.jsonl", data, mode="create")
        except FileExistsError as error:
            raise StoppedError(f"{self._url}: another run is writing to it") from error
        except Exception as error:
            raise StoppedError(f"{self._url}: can't be written: {said(error)}") from error

    def _finish(self) -> None:
        with self._as_url():
            self._table.finish()
        try:
            self._system.put_file(str(self._local), self._path)
        except Exception as error:
            raise StoppedError(f"{self._url}: can't be written: {said(error)}; its parts hold all rows") from error
        self._delete(list(self._parts().values()))

    def _delete(self, paths: list[str]) -> None:
        try:
            for path in paths:
                if self._system.exists(path):
                    self._system.rm_file(path)
        except Exception as error:
            raise StoppedError(f"{self._url}: earlier rows can't be deleted: {said(error)}") from error

    def _reading(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except Exception as error:
            raise UsageError(f"{self._url}: can't be read: {said(error)}") from error

    @contextmanager
    def _as_url(self) -> Iterator[None]:
        """Let errors about the local copy speak of the URL."""
        try:
            yield
        except (UsageError, StoppedError) as error:
            raise type(error)(str(error).replace(str(self._local), self._url)) from error
