"""Whose cell it is, by the file's name or folder, and what a subject's cells say together."""

import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Protocol, Self

from app.core.naming import CELL_NAME
from app.core.postprocess import POSITIVE
from app.folder.errors import UsageError
from app.folder.rows import Row

_GROUP: Final = "subject"
_Z_95: Final = 1.959963984540054  # normal quantile of .975


class SubjectRule(Protocol):
    """How a file's name tells the subject."""

    def __call__(self, key: str) -> str:
        """Return the subject; empty if the name does not tell."""


@dataclass(frozen=True, slots=True)
class ByPattern:
    """By a regular expression over the file's name, with a group called ``subject``.

    The default knows C-NMC's names: ``UID_<subject>_<image>_<cell>_<class>``.
    """

    pattern: re.Pattern[str] = CELL_NAME

    @classmethod
    def parse(cls, text: str) -> Self:
        """Make the rule from a user's pattern; upper and lower case are alike.

        Raises:
            UsageError: No regular expression, or one without the group.
        """
        try:
            pattern = re.compile(text, re.IGNORECASE)
        except re.error as error:
            raise UsageError(f"the subject pattern {text!r} is no regular expression: {error}") from error
        if _GROUP not in pattern.groupindex:
            raise UsageError(
                f"the subject pattern {text!r} has no group named subject, such as in 'patient-(?P<subject>[0-9]+)'"
            )
        return cls(pattern)

    def __call__(self, key: str) -> str:
        """Return the subject in upper case; empty if the name does not match."""
        match = self.pattern.search(PurePosixPath(key).name)
        return (match[_GROUP] or "").upper() if match else ""


def by_folder(key: str) -> str:
    """Return the name of the folder that the file lies in; empty if there is none."""
    return PurePosixPath(key).parent.name


@dataclass(slots=True)
class Tally:
    """Counts over one subject's cells."""

    cells: int = 0
    positive: int = 0
    review: int = 0
    failed: int = 0

    def add(self, row: Row) -> None:
        """Count one row."""
        if row.error is not None:
            self.failed += 1
            return
        self.cells += 1
        self.positive += row.label == POSITIVE
        self.review += bool(row.review)


@dataclass(slots=True)
class Summary:
    """Counts by subject, and over all."""

    subjects: dict[str, Tally]
    total: Tally

    @classmethod
    def empty(cls) -> Self:
        """Return the summary of no rows."""
        return cls({}, Tally())

    def add(self, row: Row) -> None:
        """Count one row."""
        self.subjects.setdefault(row.subject, Tally()).add(row)
        self.total.add(row)


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    It covers the chance of which cells were photographed, not the model's mistakes.

    Args:
        hits: 0..`trials`.
        trials: 1 or more.

    Returns:
        Lower and upper bound, 0..1.
    """
    share = hits / trials
    spread = _Z_95**2 / trials
    centre = share + spread / 2
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))
