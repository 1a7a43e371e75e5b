"""Rows as bytes and back: CSV and JSON Lines, and where the last whole row of a cut-off file ends."""

import csv
import json
from collections.abc import Iterable, Iterator
from typing import Final, Protocol, TextIO

from app.folder.rows import COLUMNS, Row

# A spreadsheet runs a cell that begins so as a formula (OWASP, "CSV Injection").
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
_NUMBERS: Final = ("confidence", "p_all", "p_hem")
_FREE_TEXT: Final = ("file", "subject", "error")


class Format(Protocol):
    """A way to write rows one after the other.

    Attributes:
        opening: What each file of it begins with.
    """

    opening: bytes

    def header(self) -> bytes:
        """Return what stands before the first row."""

    def encode(self, rows: Iterable[Row]) -> bytes:
        """Return rows as bytes that end in a line break."""

    def whole(self, data: bytes) -> int:
        """Return how many of the first bytes are whole rows."""

    def decode(self, file: TextIO) -> Iterator[Row]:
        """Read rows; `file` is opened with ``newline=""``.

        Raises:
            ValueError: What stands there are not these rows.
        """


class JsonLines:
    """One JSON object a line, with null for what is not there."""

    opening = f'{{"{COLUMNS[0]}":'.encode()

    def header(self) -> bytes:
        """Return nothing."""
        return b""

    def encode(self, rows: Iterable[Row]) -> bytes:
        """Return a line for each row."""
        return "".join(
            json.dumps(row.record(), ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows
        ).encode()

    def whole(self, data: bytes) -> int:
        """Return where the last line ends."""
        return data.rfind(b"\n") + 1

    def decode(self, file: TextIO) -> Iterator[Row]:
        """Parse line by line."""
        for line in file:
            yield Row.from_record(json.loads(line))


class Csv:
    """RFC 4180 with a header; text that a spreadsheet would run as a formula gets a leading ``'``."""

    opening = (",".join(COLUMNS) + "\n").encode()

    def header(self) -> bytes:
        """Return the line of column names."""
        return self.opening

    def encode(self, rows: Iterable[Row]) -> bytes:
        """Return a line for each row."""
        lines = (",".join(_quoted(_cell(value)) for value in row.record().values()) for row in rows)
        return "".join(line + "\n" for line in lines).encode()

    def whole(self, data: bytes) -> int:
        """Return where the last row ends: a line break inside quotes ends none."""
        end = data.rfind(b"\n") + 1
        while data.count(b'"', 0, end) % 2:
            end = data.rfind(b"\n", 0, end - 1) + 1
        return end

    def decode(self, file: TextIO) -> Iterator[Row]:
        """Parse row by row, after the header."""
        reader = csv.DictReader(file, strict=True)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
        for cells in reader:
            yield Row.from_record({column: _value(column, cell) for column, cell in cells.items()})


def _cell(value: str | float | bool | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA_STARTS) else text


def _quoted(text: str) -> str:
    # Python's own writer leaves a lone carriage return unquoted before 3.13, which its reader takes for a row's end.
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def _value(column: str, cell: str | None) -> str | float | bool | None:
    if cell is None:
        raise ValueError("a row has too few columns")
    if column in _NUMBERS:
        return float(cell) if cell else None
    if column == "review":
        return cell == "true" if cell else None
    if column in _FREE_TEXT and cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS):
        cell = cell[1:]
    # An answered row may have empty reasons; nothing else may be empty and yet be there, but the subject.
    return cell if cell or column == "subject" else None
