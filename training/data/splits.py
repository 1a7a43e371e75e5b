"""Subject-disjoint splits: pure functions of an index and a seed."""

import hashlib
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from training.config import SplitConfig
from training.errors import DataError

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Row numbers of an index, in three parts that share no subject group.

    Attributes:
        name: Says how the parts were made; goes into manifest, report and card.
        train: Rows to learn from.
        validation: Rows to choose the epoch, the temperature and the review band by.
        test: Rows of the published figures; nothing is chosen by them.
    """

    name: str
    train: Rows
    validation: Rows
    test: Rows

    def parts(self) -> dict[str, Rows]:
        """Return the three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def sha256(self, cells: pl.DataFrame) -> str:
        """Return a hash of which picture is in which part, whatever the index's order."""
        lines = [f"{part} {digest}" for part, rows in self.parts().items() for digest in cells[rows]["sha256"]]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def make_split(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Split an index as a configuration says.

    A picture that stands more than once in the index is used once.

    Raises:
        DataError: Too few subject groups, or a part that lacks a class.
    """
    split = by_fold(cells, config) if config.kind == "fold" else by_subject(cells, config)
    for part, rows in split.parts().items():
        if cells[rows]["label"].n_unique() < 2:
            raise DataError(
                f"split {split.name}: the {part} part ({len(rows)} cells) lacks a class; "
                "expected several subjects of each class"
            )
    return split


def by_fold(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Test on one official fold; train and validate on the others.

    Subject groups that have cells in the test fold are left out of training.

    Raises:
        DataError: The index has no such fold, or too few subject groups outside it.
    """
    rows = _once(cells)
    fold = cells["fold"].to_numpy()[rows]
    group = cells["group"].to_numpy()[rows]
    test = rows[fold == config.test_fold]
    if len(test) == 0:
        raise DataError(f"the index has no fold {config.test_fold}; it has {sorted(set(cells['fold']))}")
    others = rows[~np.isin(group, cells["group"].to_numpy()[test])]
    train, validation = _cut(cells, others, config)[0]
    name = f"fold-{config.test_fold}-as-test, validation 1/{config.parts} of the other subjects, seed {config.seed}"
    return Split(f"subject-disjoint: {name}", train, validation, test)


def by_subject(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Draw the subjects of the validation and of the test part at random, stratified by class.

    Raises:
        DataError: Fewer subject groups than parts.
    """
    cuts = _cut(cells, _once(cells), config)
    test, validation = cuts[0][1], cuts[1][1]
    train = np.setdiff1d(cuts[0][0], validation)
    name = f"validation and test each 1/{config.parts} of the subjects, seed {config.seed}"
    return Split(f"subject-disjoint: {name}", train, validation, test)


def _once(cells: pl.DataFrame) -> Rows:
    return np.flatnonzero(~cells["duplicate"].to_numpy()).astype(np.int64)


def _cut(cells: pl.DataFrame, rows: Rows, config: SplitConfig) -> list[tuple[Rows, Rows]]:
    """Cut rows into parts by subject group; each result is (all but one part, that part)."""
    groups = cells[rows].select("group", "label").unique().sort("group", "label")
    counts = groups["label"].value_counts()["count"].to_list()
    if len(counts) < 2 or min(counts) < config.parts:
        raise DataError(f"{config.parts} parts need as many subject groups of each class; there are {sorted(counts)}")
    # Dealing out subjects, not cells: the largest has 757 cells and would fill a part alone.
    folds = StratifiedKFold(n_splits=config.parts, shuffle=True, random_state=config.seed)
    group = cells["group"].to_numpy()[rows]
    names = groups["group"].to_numpy()
    cuts = []
    for _, chosen in folds.split(names, groups["label"].to_numpy()):
        mine = np.isin(group, names[chosen])
        cuts.append((rows[~mine], rows[mine]))
    return cuts
