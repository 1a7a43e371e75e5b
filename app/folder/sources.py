"""Find the pictures under paths, globs, URLs and in zip archives, and read them one by one, none unpacked to disk."""

import glob
import os
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from app.core.naming import is_picture
from app.core.tree import walk
from app.folder.errors import UsageError
from app.folder.stores import StoredFile, is_url, listed

_ARCHIVE_SUFFIX: Final = ".zip"
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture to answer, or one thing that can't even be looked into.

    Attributes:
        key: Its name in the output, with ``/`` between folders; unique within a run.
        path: The file, here or in a store, or the archive that holds it.
        member: Name inside the archive; None for a plain file.
        size: In bytes, as the file system or the archive says.
        problem: Why it can't be read, if that is known already.
    """

    key: str
    path: Path | StoredFile
    member: str | None = None
    size: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All pictures that were found, in order, and how many other files were passed over."""

    entries: list[Entry]
    skipped: int


class UnreadableError(Exception):
    """One picture's bytes can't be had; its text says why."""


def find(paths: Iterable[str]) -> Listing:
    """List the pictures under paths.

    A file that is named outright is always taken; in folders and archives, what has a picture's
    suffix is. Folders are walked to the bottom in the order of names. Archives behind a URL are
    passed over.

    Args:
        paths: Files, folders, zip archives, glob patterns (``**`` crosses folders), or URLs of the
            like (``s3://bucket/prefix/``).

    Raises:
        UsageError: A path is not there, a pattern matches nothing, or a URL can't be listed.
    """
    found: dict[str, Entry] = {}
    skipped = 0
    for pattern in paths:
        for entry in _stored(pattern) if is_url(pattern) else _local(pattern):
            if entry is None:
                skipped += 1
            else:
                found.setdefault(entry.key, entry)
    return Listing(list(found.values()), skipped)


class Reader:
    """Reads entries; keeps the archive of the last one open. Safe to share between threads."""

    def __init__(self, max_bytes: int) -> None:
        """Make a reader.

        Args:
            max_bytes: Largest picture that is read, unpacked.
        """
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._archive: zipfile.ZipFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, entry: Entry) -> bytes:
        """Return the bytes of a picture.

        Raises:
            UnreadableError: They can't be had, or are too many.
            StoppedError: The store that they lie in fails.
        """
        if entry.problem is not None:
            raise UnreadableError(entry.problem)
        if entry.size > self._max_bytes:
            raise UnreadableError(f"The file has {entry.size:,} bytes; at most {self._max_bytes:,} are read.")
        try:
            if entry.member is None or isinstance(entry.path, StoredFile):
                return entry.path.read_bytes()
            return self._member(entry.path, entry.member)
        except OSError as error:
            raise UnreadableError(f"The file can't be read: {error.strerror or error}.") from error
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, NotImplementedError, KeyError) as error:
            raise UnreadableError(f"The archive's member can't be unpacked: {error}.") from error

    def _member(self, path: Path, member: str) -> bytes:
        # zipfile reads no more than the size that was checked, and then compares the checksum.
        with self._lock:
            if path != self._path:
                self._close()
                self._archive, self._path = zipfile.ZipFile(path), path
            assert self._archive is not None  # noqa: S101 - narrows the type
            return self._archive.read(member)

    def _close(self) -> None:
        if self._archive is not None:
            self._archive.close()
        self._archive = self._path = None


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.exists():
        return [path]
    if not glob.has_magic(pattern):
        raise UsageError(f"{pattern}: no such file or folder")
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not matches:
        raise UsageError(f"{pattern}: the pattern matches nothing")
    return [Path(match) for match in matches]


def _stored(url: str) -> Iterator[Entry | None]:
    for file, size in listed(url):
        # What is named outright is taken whatever its name.
        if not is_picture(file) and file != url:
            yield None
            continue
        problem = "The name has '::', which fsspec takes for a chain of URLs." if "::" in file else None
        yield Entry(file, StoredFile(file), size=size, problem=problem)


def _local(pattern: str) -> Iterator[Entry | None]:
    for path in _expand(pattern):
        yield from _entries(path)


def _entries(path: Path) -> Iterator[Entry | None]:
    """Yield the entries of one path; None for each file that is no picture by its name."""
    if path.is_dir():
        yield from _walk(path)
    elif path.suffix.lower() == _ARCHIVE_SUFFIX:
        yield from _archive(path)
    else:
        yield _file(path)


def _walk(top: Path) -> Iterator[Entry | None]:
    unreadable: list[OSError] = []
    for folder, files in walk(top, unreadable.append):
        for name in files:
            path = folder / name
            if path.suffix.lower() == _ARCHIVE_SUFFIX:
                yield from _archive(path)
            else:
                yield _file(path) if is_picture(name) and path.is_file() else None
    for error in unreadable:
        path = Path(error.filename)
        yield Entry(_key(path), path, problem=f"The folder can't be read: {error.strerror}.")


def _file(path: Path) -> Entry:
    try:
        return Entry(_key(path), path, size=path.stat().st_size)
    except OSError as error:
        return Entry(_key(path), path, problem=f"The file can't be read: {error.strerror}.")


def _archive(path: Path) -> Iterator[Entry | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        yield Entry(_key(path), path, problem=f"The zip archive can't be read: {error}.")
        return
    for member in members:
        if not is_picture(member.filename):
            yield None
            continue
        problem = "The archive's member is encrypted." if member.flag_bits & _ENCRYPTED else None
        yield Entry(f"{_key(path)}/{member.filename}", path, member.filename, member.file_size, problem)


def _key(path: Path) -> str:
    # A name that is no valid text gets escapes, so that it can stand in any output.
    return os.fsencode(path.as_posix()).decode("utf-8", errors="backslashreplace")
