"""An index with its split and its arrays: all that a run reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.config import DataConfig
from training.data.arrays import load_inputs, targets
from training.data.index import load_index
from training.data.splits import Split, make_split


@dataclass(frozen=True)
class Data:
    """An index with its split and its arrays.

    Attributes:
        cells: The labelled cells of the index.
        split: Of the run's configuration.
        inputs: Preprocessed pictures, shape ``(cells, size, size, 3)``, 0..255; or what stands for
            them, one entry a cell.
        targets: Classes, shape ``(cells,)``, as positions in ``LABELS``.
    """

    cells: pl.DataFrame
    split: Split
    inputs: NDArray[Any]
    targets: NDArray[np.int64]

    @property
    def groups(self) -> NDArray[np.str_]:
        """Subject group of each cell; a cell of an unknown subject is one of its own."""
        return self.cells["group"].fill_null(self.cells["path"]).to_numpy().astype(str)

    @property
    def subjects(self) -> NDArray[np.str_]:
        """Subject of each cell, for people."""
        unknown = "unknown " + self.cells["label"]
        return self.cells["subject"].fill_null(unknown).to_numpy().astype(str)

    @classmethod
    def load(cls, index: Path, config: DataConfig, cache: Path) -> Self:
        """Read an index, split it, and decode its labelled pictures or find them in the cache."""
        cells = load_index(index).filter(pl.col("label").is_not_null())
        split = make_split(cells, config.split)
        inputs = load_inputs(cells, index.parent, config.input.spec(), cache)
        return cls(cells, split, inputs, targets(cells))
