"""One line of the output: a picture's answer, or what is wrong with it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Self

from app.core.postprocess import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The answer for one picture, or its error; where one stands the other is None.

    Attributes:
        file: Path as it was found; inside an archive, after the archive's path.
        subject: Whose cell it is; empty if the name does not tell.
        label: ``ALL`` or ``HEM``.
        confidence: Calibrated probability of `label`, 0..1.
        p_all: Calibrated probability of ALL, 0..1.
        p_hem: Calibrated probability of HEM, 0..1.
        review: Whether a person should look.
        reasons: Why, joined by ``;``; empty if nobody need look.
        error: What is wrong with the picture.
        model: Name of the model that answered.
        version: Its version.
    """

    file: str
    subject: str
    label: str | None = None
    confidence: float | None = None
    p_all: float | None = None
    p_hem: float | None = None
    review: bool | None = None
    reasons: str | None = None
    error: str | None = None
    model: str | None = None
    version: str | None = None

    @classmethod
    def answered(cls, file: str, subject: str, prediction: Prediction, model: str, version: str) -> Self:
        """Make the row of an answered picture."""
        return cls(
            file=file,
            subject=subject,
            label=prediction.label,
            confidence=prediction.confidence,
            p_all=prediction.probabilities["ALL"],
            p_hem=prediction.probabilities["HEM"],
            review=prediction.review,
            reasons=";".join(prediction.reasons),
            model=model,
            version=version,
        )

    @classmethod
    def from_record(cls, record: object) -> Self:
        """Make a row from a record with just its columns.

        Raises:
            ValueError: Columns are missing or unknown, or a value has another type.
        """
        if not isinstance(record, dict) or tuple(record) != COLUMNS:
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
        row = cls(**record)
        if not isinstance(row.file, str) or not isinstance(row.subject, str):
            raise ValueError("file and subject must be text")
        if (row.label is None) == (row.error is None):
            raise ValueError("expected either a label or an error")
        return row

    def record(self) -> dict[str, Any]:
        """Return column → value, in the order of the output."""
        return {column: getattr(self, column) for column in COLUMNS}


COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Row))
