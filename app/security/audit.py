"""The audit log's file: appended to by one writer, mended after a crash, rotated by size."""

import asyncio
import hashlib
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from app.core.errors import AuditError
from app.core.postprocess import Prediction
from app.security.audit_chain import LINE_START, Link, read_link, rotated_files, seal

if sys.platform != "win32":
    import fcntl

_LOG: Final = logging.getLogger(__name__)
_MODE: Final = 0o640
_TAIL_BYTES: Final = 64 * 1024  # far more than one line
_NOT_RECORDED: Final = "The answer can't be recorded, so it is not given."


@dataclass(frozen=True, slots=True)
class Entry:
    """One answered picture.

    Attributes:
        request_id: Of the request that brought it.
        key: Name of the API key; None without keys.
        data: The picture as it came; only its hash is written.
        model: Name and version.
        model_sha256: Of the graph file.
        prediction: The answer.
    """

    request_id: str
    key: str | None
    data: bytes
    model: tuple[str, str]
    model_sha256: str
    prediction: Prediction

    def members(self) -> dict[str, Any]:
        """Return what the log says of it."""
        name, version = self.model
        return {
            "event": "prediction",
            "time": _now(),
            "request_id": self.request_id,
            "key": self.key,
            "image_sha256": hashlib.sha256(self.data).hexdigest(),
            "model": {"name": name, "version": version},
            "model_sha256": self.model_sha256,
            "label": self.prediction.label,
            "confidence": self.prediction.confidence,
            "review": self.prediction.review,
            "reasons": list(self.prediction.reasons),
        }


class AuditFile:
    """The file and its chain. Blocking, and used by one thread at a time."""

    def __init__(self, path: Path, *, fsync: bool, max_bytes: int) -> None:
        """Describe the log; `open` opens it.

        Args:
            path: The log; its folder is there.
            fsync: Whether each write is on the disk before it counts: safe from a loss of power too.
            max_bytes: From this size on the file is rotated away.
        """
        self._path = path
        self._fsync = fsync
        self._max_bytes = max_bytes
        self._lock: int | None = None
        self._file: int | None = None
        self._last = Link()

    def open(self) -> None:
        """Lock the log, find its end, and mend what a crash left.

        Raises:
            AuditError: It can't be opened, another process writes it, or its last line was changed.
        """
        try:
            self._lock_for_us()
            self._open()
        except OSError as error:
            raise AuditError(f"{self._path}: the audit log can't be opened: {error.strerror}") from error

    def append(self, entries: Sequence[Entry]) -> None:
        """Write lines for entries; all are in the file when it returns.

        Raises:
            OSError, AuditError: They could not be written. The next call mends the file and goes on
                from its last whole line.
        """
        try:
            if self._file is None:
                self._open()
            self._write([entry.members() for entry in entries])
        except (OSError, AuditError):
            self._close_file()
            raise
        try:
            self._rotate()
        except OSError as error:  # what was to be written is written
            _LOG.warning("the audit log can't be rotated: %s", error)
            self._close_file()

    def close(self) -> None:
        """Let the file and its lock go."""
        self._close_file()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _lock_for_us(self) -> None:
        # A file of its own: the log itself is renamed when it is rotated.
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        if sys.platform != "win32":
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AuditError(f"{self._path}: another process writes this audit log") from error

    def _open(self) -> None:
        older = rotated_files(self._path)
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        torn = self._mend()
        if not os.fstat(self._file).st_size:
            self._last = _end_of(older[-1]) if older else Link()
        else:
            self._last = _end_of(self._path)
        if torn:
            _LOG.warning("the audit log ended in %d bytes of an unfinished line", len(torn))
            text = torn.decode("ascii", "replace")
            self._write([{"event": "recovered", "time": _now(), "torn_bytes": len(torn), "torn": text}])

    def _mend(self) -> bytes:
        """Take an unfinished last line off the file and return it."""
        assert self._file is not None  # noqa: S101 - opened by the caller
        size = os.fstat(self._file).st_size
        tail = _tail(self._file, size)
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn.strip(b"\0") and not torn.startswith(LINE_START[: len(torn)]):
            raise AuditError(f"{self._path}: its end is no line of an audit log; move the file away to begin anew")
        if torn:
            os.ftruncate(self._file, size - len(torn))
        return torn

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        assert self._file is not None  # noqa: S101 - opened by the caller
        last, sealed = self._last, []
        for members in lines:
            line, last = seal(members, last)
            sealed.append(line)
        rest = memoryview(b"".join(sealed))
        while rest:
            rest = rest[os.write(self._file, rest) :]
        if self._fsync:
            os.fsync(self._file)
        self._last = last

    def _rotate(self) -> None:
        assert self._file is not None  # noqa: S101 - opened by the caller
        if os.fstat(self._file).st_size < self._max_bytes:
            return
        older = rotated_files(self._path)
        number = 1 + (int(older[-1].suffix[1:]) if older else 0)
        os.fsync(self._file)
        self._close_file()
        self._path.rename(f"{self._path}.{number:06d}")
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class EntryFile(Protocol):
    """What `AuditLog` writes to: an `AuditFile`."""

    def open(self) -> None:
        """Open it for writing."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries; all are safe when it returns."""

    def close(self) -> None:
        """Let it go."""


class AuditLog:
    """Writes entries from the event loop; those that come while a write runs go together in the next one."""

    def __init__(self, file: EntryFile) -> None:
        self._file = file
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="audit")
        self._pending: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the file; see `AuditFile.open`."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._file.open)

    async def write(self, entries: Sequence[Entry]) -> None:
        """Write entries, and return when they are in the file.

        Raises:
            AuditError: They could not be written; the log of the service says why.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entries, written))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="audit")
        await written

    async def close(self) -> None:
        """Write what is pending and let the file go."""
        if self._flushing is not None:
            await self._flushing
        await asyncio.get_running_loop().run_in_executor(self._writer, self._file.close)
        self._writer.shutdown(wait=False)

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            entries = [entry for some, _ in batch for entry in some]
            try:
                await loop.run_in_executor(self._writer, self._file.append, entries)
            except Exception:  # noqa: BLE001 - whatever it was, those who wait must hear of it
                _LOG.exception("the audit log can't be written")
                _settle(batch, failed=True)
            else:
                _settle(batch, failed=False)


def _settle(batch: Sequence[tuple[Sequence[Entry], asyncio.Future[None]]], *, failed: bool) -> None:
    for _, written in batch:
        if written.done():  # its client hung up
            continue
        if failed:
            written.set_exception(AuditError(_NOT_RECORDED))
        else:
            written.set_result(None)


def _end_of(path: Path) -> Link:
    with path.open("rb") as file:
        tail = _tail(file.fileno(), os.fstat(file.fileno()).st_size)
    try:
        return read_link(tail.splitlines(keepends=True)[-1])[0]
    except (AuditError, IndexError) as error:
        raise AuditError(
            f"{path}: the audit log's last line can't be followed: {error}. "
            "`leukoscope audit verify` tells more; move the file away to begin anew."
        ) from None


def _tail(file: int, size: int) -> bytes:
    return os.pread(file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
