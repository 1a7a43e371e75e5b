"""Splits of an index into training, validation and test: pure functions of the index and a seed."""

import hashlib
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, train_test_split

from training.data.index import contradictory
from training.data.labels import LABELS
from training.errors import DataError
from training.tables import SplitConfig

Rows = NDArray[np.int64]

DISJOINT: Final = "subject-disjoint"
LEAKING: Final = "LEAKING by image"
# Of the two notebooks.
_TRAIN_SHARE: Final = 0.7


@dataclass(frozen=True)
class Split:
    """Row numbers of an index, in three parts.

    Attributes:
        name: Says how the parts were made, and whether they share subjects; goes into manifest,
            report and card.
        train: Rows to learn from.
        validation: Rows to choose the epoch, the temperature and the review band by.
        test: Rows of the published figures; nothing is chosen by them.
    """

    name: str
    train: Rows
    validation: Rows
    test: Rows

    @property
    def leaks(self) -> bool:
        """Whether cells of one subject may be on two sides."""
        return not self.name.startswith(DISJOINT)

    def parts(self) -> dict[str, Rows]:
        """Return the three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def sha256(self, cells: pl.DataFrame) -> str:
        """Return a hash of which picture is in which part, whatever the index's order."""
        lines = [f"{part} {digest}" for part, rows in self.parts().items() for digest in cells[rows]["sha256"]]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def make_split(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Split an index as a configuration says.

    Cells without a label are in no part. A picture that stands more than once in the index is used
    once, and not at all where it has both labels; but for the split by image, which takes the data as the
    notebooks did.

    Raises:
        DataError: Too few subject groups, unknown subjects, or a part that lacks a class.
    """
    makers = {"all": whole, "fold": by_fold, "subject": by_subject, "preliminary": by_preliminary, "image": by_image}
    split = makers[config.kind](cells, config)
    for part, rows in split.parts().items():
        if part == "test" and config.kind == "all":
            continue
        if cells[rows]["label"].n_unique() < 2:
            raise DataError(
                f"split {split.name}: the {part} part ({len(rows)} cells) lacks a class; "
                "expected several subjects of each class"
            )
    return split


def whole(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Train and validate on all cells: for a model whose recipe has been judged by other runs.

    Raises:
        DataError: Fewer subject groups than parts.
    """
    train, validation = cut_by_subject(cells, _once(cells, _training(cells, config)), config)[0]
    name = f"all subjects, validation 1/{config.parts} of them, no test part"
    return Split(f"{DISJOINT}: {name}{_suffix(config)}", train, validation, np.zeros(0, dtype=np.int64))


def by_fold(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Test on one official fold; train and validate on the others.

    Subject groups that have cells in the test fold are left out of training.

    Raises:
        DataError: The index has no such fold, or too few subject groups outside it.
    """
    mine, chosen = _training(cells, config), cells["fold"].fill_null(-1).to_numpy() == config.test_fold
    test, rows = _once(cells, mine & chosen), _once(cells, mine & ~chosen)
    if len(test) == 0:
        folds = sorted(cells.filter(pl.Series(mine))["fold"].drop_nulls().unique())
        told = f"it has {folds}" if folds else "cells of one's own have none: use --split subject:0"
        raise DataError(f"the index has no fold {config.test_fold}; {told}")
    train, validation = cut_by_subject(cells, _without_groups_of(cells, rows, test), config)[0]
    name = f"fold-{config.test_fold}-as-test, validation 1/{config.parts} of the other subjects"
    return Split(f"{DISJOINT}: {name}{_suffix(config)}", train, validation, test)


def by_preliminary(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Test on the preliminary test set; train and validate on the training folds.

    Raises:
        DataError: The index has no preliminary test set, or too few subject groups outside it.
    """
    test = _once(cells, (cells["source"] == "preliminary").to_numpy())
    if len(test) == 0:
        raise DataError("the index has no cells of the preliminary test set")
    rows = _once(cells, _training(cells, config))
    train, validation = cut_by_subject(cells, _without_groups_of(cells, rows, test), config)[0]
    name = f"preliminary test set as test, validation 1/{config.parts} of the training subjects"
    return Split(f"{DISJOINT}: {name}{_suffix(config)}", train, validation, test)


def by_subject(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Deal the subjects out to parts, stratified by class; one part tests, and the next one validates.

    Raises:
        DataError: Fewer subject groups than parts.
    """
    cuts = cut_by_subject(cells, _once(cells, _training(cells, config)), config)
    rest, test = cuts[config.part]
    validation = cuts[(config.part + 1) % config.parts][1]
    name = f"test on part {config.part + 1} of {config.parts} of the subjects, validation on the next"
    return Split(f"{DISJOINT}: {name}{_suffix(config)}", np.setdiff1d(rest, validation), validation, test)


def by_image(cells: pl.DataFrame, config: SplitConfig) -> Split:
    """Draw 70 % of the pictures to learn from, and halve the rest, stratified by class: as the notebooks did.

    Cells of one subject, and even the same picture twice, come to stand on several sides.

    Raises:
        DataError: Too few cells.
    """
    rows = np.flatnonzero(_training(cells, config)).astype(np.int64)
    label = cells["label"].to_numpy()
    try:
        train, rest = train_test_split(rows, train_size=_TRAIN_SHARE, random_state=config.seed, stratify=label[rows])
        validation, test = train_test_split(rest, train_size=0.5, random_state=config.seed, stratify=label[rest])
    except ValueError as error:
        raise DataError(f"too few cells for a split by image: {error}") from error
    return Split(f"{LEAKING}: 70/15/15{_suffix(config)}", *(np.sort(part) for part in (train, validation, test)))


def _suffix(config: SplitConfig) -> str:
    folds = "" if config.folds is None else f", folds {'+'.join(map(str, config.folds))}"
    return f"{folds}, seed {config.seed}"


def _training(cells: pl.DataFrame, config: SplitConfig) -> NDArray[np.bool_]:
    """Mark the labelled cells that may be learnt from."""
    mine = pl.col("label").is_not_null() & pl.col("source").is_in(["training", "own"])
    if config.folds is not None:
        mine &= pl.col("fold").is_in(config.folds)
    return cells.select(mine.fill_null(value=False)).to_series().to_numpy()


def _once(cells: pl.DataFrame, mine: NDArray[np.bool_]) -> Rows:
    """Return the marked rows, each picture once, without pictures of both labels; all must have a subject."""
    rows = np.flatnonzero(mine & ~cells.select(contradictory()).to_series().to_numpy()).astype(np.int64)
    first = cells[rows]["pixels"].is_first_distinct().to_numpy()
    unknown = cells[rows]["subject"].null_count()
    if unknown:
        raise DataError(
            f"{unknown} cells have no subject, so that no split can keep subjects apart; name files "
            "UID_<subject>_<image>_<cell>_<class>, or put each subject's cells in a folder of its own in all/ or hem/"
        )
    return np.asarray(rows[first])


def _without_groups_of(cells: pl.DataFrame, rows: Rows, others: Rows) -> Rows:
    """Return the rows whose subject group has no cell among the others."""
    group = cells["group"].to_numpy()
    return rows[~np.isin(group[rows].astype(str), group[others].astype(str))]


def cut_by_subject(cells: pl.DataFrame, rows: Rows, config: SplitConfig) -> list[tuple[Rows, Rows]]:
    """Cut rows into parts by subject group, stratified by class.

    Returns:
        For each part: all rows but its own, and its own; both in the order of `rows`.

    Raises:
        DataError: Fewer subject groups of a class than parts.
    """
    has = {label: (pl.col("label") == label).any() for label in LABELS}
    groups = cells[rows].group_by("group").agg(**has).sort("group")
    counts = {label: int(groups[label].sum()) for label in LABELS}
    if min(counts.values()) < config.parts:
        told = ", ".join(f"{count} {label}" for label, count in counts.items())
        raise DataError(f"{config.parts} parts need as many subject groups of each class; there are {told}")
    # Dealing out subjects, not cells: the largest has 757 cells and would fill a part alone. A group that has cells
    # of both classes is dealt once, as one of the class that fewer groups have.
    scarce = groups[min(counts, key=counts.__getitem__)].to_numpy()
    folds = StratifiedKFold(n_splits=config.parts, shuffle=True, random_state=config.seed)
    group = cells["group"].to_numpy()[rows]
    names = groups["group"].to_numpy()
    cuts = []
    with warnings.catch_warnings():
        # There may be fewer groups of the other class alone than parts: those of both classes stand in.
        warnings.simplefilter("ignore", UserWarning)
        for _, chosen in folds.split(names, scarce):
            mine = np.isin(group.astype(str), names[chosen].astype(str))
            cuts.append((rows[~mine], rows[mine]))
    return cuts
