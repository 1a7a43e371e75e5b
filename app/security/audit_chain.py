"""The audit log's lines: each carries the hash of the one before, so that none can be changed or taken out unseen.

A line is a JSON object whose last member, ``hash``, is the SHA-256 of the line's own bytes without that member.
``previous`` is the hash of the line before, 64 zeros in the first. Whoever may write the file could make a whole new
chain; a hash kept elsewhere (`verify`'s `anchor`) shows that, and also a log cut short.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.core.errors import AuditError

FIRST_PREVIOUS: Final = "0" * 64
LINE_START: Final = b'{"sequence":'

_MAX_LINE_BYTES: Final = 1024 * 1024
_ROTATED: Final = re.compile(r"\.(\d{6,})")
_SEALED: Final = re.compile(rb'(\{.*),"hash":"([0-9a-f]{64})"\}\n', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Link:
    """Where a chain stands.

    Attributes:
        sequence: Of the last line; 0 before the first.
        hash: Of the last line.
    """

    sequence: int = 0
    hash: str = FIRST_PREVIOUS


@dataclass(frozen=True, slots=True)
class Verified:
    """An intact chain.

    Attributes:
        files: Those that hold it, oldest first.
        first: Sequence of its first line; above 1 if older files are kept elsewhere. 0 if there is no line.
        last: Where it ends.
        torn_bytes: Behind the last whole line: a write that a crash cut off, or one under way.
    """

    files: tuple[Path, ...]
    first: int
    last: Link
    torn_bytes: int


def seal(members: Mapping[str, Any], last: Link) -> tuple[bytes, Link]:
    """Make the line that follows `last`.

    Args:
        members: What the line says; not ``sequence``, ``previous`` or ``hash``.
        last: Where the chain stands.

    Returns:
        The line with its end, and where the chain stands then.
    """
    sequence = last.sequence + 1
    whole = {"sequence": sequence, **members, "previous": last.hash}
    body = json.dumps(whole, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"hash":"{digest}"}}\n'.encode("ascii"), Link(sequence, digest)


def read_link(line: bytes) -> tuple[Link, str]:
    """Check one line by itself.

    Returns:
        Where the chain stands behind it, and the hash that it gives for the line before.

    Raises:
        AuditError: It is no line of this log, or was changed.
    """
    match = _SEALED.fullmatch(line)
    if match is None:
        raise AuditError("it is no line of an audit log")
    body, digest = match[1] + b"}", match[2].decode("ascii")
    if hashlib.sha256(body).hexdigest() != digest:
        raise AuditError("its hash does not fit: it was changed")
    try:
        members = json.loads(body)
        return Link(int(members["sequence"]), digest), str(members["previous"])
    except (KeyError, TypeError, ValueError) as error:
        raise AuditError("it has no sequence and previous hash") from error


def verify(path: Path, anchor: str | None = None) -> Verified:
    """Check a whole log: the file and those that were rotated away beside it.

    Args:
        path: The log. A rotated file stands for itself alone.
        anchor: A hash that was noted earlier and must occur.

    Raises:
        AuditError: The chain is broken, and where; or `anchor` does not occur in it; or there is no file.
    """
    files = (*rotated_files(path), *([path] if path.exists() else []))
    if not files:
        raise AuditError(f"{path}: there is no such file")
    first, last, torn, anchored = 0, Link(), 0, anchor is None
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if not line.endswith(b"\n") and file == path:
                torn = len(line)
                break
            last = _follow(last, line, first == 0, f"{file}, line {number}")
            first = first or last.sequence
            anchored = anchored or last.hash == anchor
    if not anchored:
        raise AuditError(f"{path}: no line has the hash {anchor}: the log was cut short or written anew")
    return Verified(tuple(files), first, last, torn)


def rotated_files(path: Path) -> list[Path]:
    """Return the files that were rotated away from a log, oldest first."""
    found = []
    for candidate in path.parent.iterdir() if path.parent.is_dir() else ():
        if not candidate.name.startswith(path.name):
            continue
        match = _ROTATED.fullmatch(candidate.name.removeprefix(path.name))
        if match:
            found.append((int(match[1]), candidate))
    return [file for _, file in sorted(found)]


def _follow(last: Link, line: bytes, begins: bool, where: str) -> Link:
    try:
        link, previous = read_link(line)
    except AuditError as error:
        raise AuditError(f"{where}: {error}") from None
    expected = Link(link.sequence - 1, previous) if begins and link.sequence > 1 else last
    if link.sequence != expected.sequence + 1 or previous != expected.hash:
        raise AuditError(
            f"{where}: it is number {link.sequence} and does not follow number {last.sequence}: "
            "lines are missing, added or in another order"
        )
    return link


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE_BYTES):
                yield line
    except OSError as error:
        raise AuditError(f"{path}: can't be read: {error.strerror}") from error
