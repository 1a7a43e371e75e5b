"""Start weights that have learnt from subjects who shall test what is made of them are refused."""

import contextlib
from collections.abc import Iterator
from typing import Final

import polars as pl
from pydantic import ValidationError

from training.config import DataConfig, ProbeRunConfig
from training.data.dataset import Data
from training.data.index import load_index
from training.data.splits import make_split
from training.errors import DataError, RunError
from training.origin import Ancestor, ancestors
from training.tables import SplitConfig

_SHOWN: Final = 5


def check_start(config: DataConfig, data: Data) -> None:
    """Check that no run that the start weights have come through was told the labels of test subjects.

    Teaching features needs no labels, and a probe solves the last layer anew; all else counts.

    Args:
        config: Of the run that begins.
        data: Its data.

    Raises:
        RunError: There is such a run.
    """
    if config.model.start.file is None or data.split.leaks:
        return
    test = set(data.groups[data.split.test])
    for number, run in enumerate(ancestors(config.model.start.file)):
        kept = number == 0 and not isinstance(config, ProbeRunConfig)
        if "distil" in run.tables or ("probe" in run.tables and not kept):
            continue
        known = data.cells["sha256"].is_in(_learnt(run, data)).to_numpy()
        if both := sorted(test & set(data.groups[known])):
            names = ", ".join(both[:_SHOWN]) + (", ..." if len(both) > _SHOWN else "")
            raise RunError(
                f"{config.model.start.file}: the run {run.tables.get('name')} that these start weights are of has "
                f"learnt from {len(both)} of the {len(test)} subjects of the test part ({names}); start from one with "
                "the same --split"
            )


def _learnt(run: Ancestor, data: Data) -> list[str]:
    """Hashes of the pictures whose labels a run was told; none where that can't be found out any more."""
    for cells in _tables(run, data):
        try:
            split = make_split(cells, SplitConfig.model_validate(run.tables.get("split")))
        except (DataError, ValidationError):
            continue
        return [sha256 for rows in (split.train, split.validation) for sha256 in cells[rows]["sha256"]]
    return []


def _tables(run: Ancestor, data: Data) -> Iterator[pl.DataFrame]:
    """Yield the labelled cells that a run was made from, or, where its index is gone, those that there are."""
    if run.index is not None:
        with contextlib.suppress(DataError):
            yield load_index(run.index).filter(pl.col("label").is_not_null())
    yield data.cells
