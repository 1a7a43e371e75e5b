"""A table of answers, one row a cell: what a run's figures are computed from."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.core.postprocess import softmax
from training.data.dataset import Data
from training.data.labels import ALL, LABELS
from training.data.splits import Rows
from training.errors import RunError
from training.run import PREDICTIONS_FILE, Run


def answers(
    data: Data,
    part: str,
    rows: Rows,
    values: NDArray[np.float64],
    temperature: float,
    unlike: NDArray[np.float32] | None = None,
) -> pl.DataFrame:
    """Make the table of a part.

    Args:
        data: The run's data.
        part: Its name.
        rows: Its cells.
        values: Logits, shape ``(rows, 2)``.
        temperature: They are divided by it.
        unlike: Novelty over its threshold, so that 1 is flagged; None where it chose the threshold.

    Returns:
        Columns ``path``, ``sha256``, ``subject``, ``group``, ``label``, ``part``, ``logit_all``,
        ``logit_hem``, ``probability_all`` and ``novelty``.
    """
    return (
        data.cells[rows]
        .select("path", "sha256", "subject", "group", "label")
        .with_columns(
            pl.Series("subject", data.subjects[rows]),
            part=pl.lit(part),
            logit_all=values[:, ALL],
            logit_hem=values[:, 1 - ALL],
            probability_all=softmax(values, temperature)[:, ALL],
            novelty=pl.Series([None] * len(rows) if unlike is None else unlike, dtype=pl.Float32),
        )
    )


def read_test(run: Run, judged_by: Sequence[Run], temperature: float) -> pl.DataFrame:
    """Return the test parts of the runs that judge one without a test part of its own.

    Args:
        run: Without a test part.
        judged_by: Evaluated runs of the same recipe.
        temperature: Of `run`: the one that is served. Those of the others come from fewer subjects.

    Raises:
        RunError: There are none, they are of another recipe, or share cells.
    """
    if not judged_by:
        raise RunError(f"{run.folder} has no test part; name runs of the same recipe that have one with --judged-by")
    for other in judged_by:
        if _recipe(other) != _recipe(run):
            raise RunError(f"{other.folder} has another configuration than {run.folder}, and can't judge it")
        if not (other.folder / PREDICTIONS_FILE).is_file():
            raise RunError(f"{other.folder} has no {PREDICTIONS_FILE}; evaluate that run first")
    tables = [pl.read_parquet(other.folder / PREDICTIONS_FILE).filter(pl.col("part") == "test") for other in judged_by]
    table = pl.concat(tables)
    if table["path"].n_unique() < len(table):
        raise RunError("the runs that judge share test cells; expected each cell in one of them")
    return table.with_columns(probability_all=softmax(logits(table), temperature)[:, ALL])


def truth(table: pl.DataFrame) -> NDArray[np.bool_]:
    """Return whether each cell is ALL."""
    return np.asarray((table["label"] == LABELS[ALL]).to_numpy())


def probability(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return each cell's calibrated probability of ALL."""
    return table["probability_all"].to_numpy()


def logits(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return logits, shape ``(cells, 2)``."""
    values = np.empty((len(table), 2))
    values[:, ALL], values[:, 1 - ALL] = table["logit_all"], table["logit_hem"]
    return values


def flagged(table: pl.DataFrame) -> NDArray[np.bool_]:
    """Return whether each cell is flagged as none."""
    return np.asarray((table["novelty"] > 1).fill_null(value=False).to_numpy())


def _recipe(run: Run) -> dict[str, object]:
    """A run's configuration but for its subjects, its seed and the file that it starts from."""
    tables = run.config().model_dump(mode="json")
    tables["model"]["start"].pop("file")
    return {key: value for key, value in tables.items() if key not in {"split", "seed"}}
