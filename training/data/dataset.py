"""An index with its split and its arrays: all that a run reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
        cells: The index.
        split: Of the run's configuration.
        inputs: Preprocessed pictures, shape ``(cells, size, size, 3)``, 0..255.
        targets: Classes, shape ``(cells,)``, as positions in ``LABELS``.
    """

    cells: pl.DataFrame
    split: Split
    inputs: NDArray[np.uint8]
    targets: NDArray[np.int64]

    @property
    def groups(self) -> NDArray[np.str_]:
        """Subject group of each cell."""
        return self.cells["group"].to_numpy().astype(str)

    @classmethod
    def load(cls, index: Path, config: DataConfig, cache: Path) -> Self:
        """Read an index, split it, and decode its pictures or find them in the cache."""
        cells = load_index(index)
        split = make_split(cells, config.split)
        inputs = load_inputs(cells, index.parent, config.input.spec(), cache)
        return cls(cells, split, inputs, targets(cells))
