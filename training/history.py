"""A run's figures as a CSV file that survives what its run survives: a kill, and a new start."""

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from training.run import read_checkpoint


class History(Logger):
    """Writes a row for each set of figures, the whole file each time, or not at all.

    Lightning's own begins a resumed run's file anew, and may be killed between emptying and writing it.

    Args:
        file: To write.
        checkpoint: From which the run goes on: rows before it are kept, later ones will be logged again.
    """

    def __init__(self, file: Path, checkpoint: Path | None) -> None:
        super().__init__()
        self._file = file
        self._rows = _rows_before(checkpoint, file)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._file.parent.name

    @property
    def version(self) -> str:
        """There is one."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row."""
        self._rows.append({**metrics, "step": step})
        names = sorted({name for row in self._rows for name in row})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        with part.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, names)
            writer.writeheader()
            writer.writerows(self._rows)
        part.replace(self._file)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in the run's configuration."""


def _rows_before(checkpoint: Path | None, file: Path) -> list[dict[str, Any]]:
    if checkpoint is None or not file.is_file():
        return []
    steps = read_checkpoint(checkpoint)["global_step"]
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(opened)]
    return [row for row in rows if int(row["step"]) < steps]
