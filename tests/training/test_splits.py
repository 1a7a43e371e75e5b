"""Splits keep every subject group on one side, repeat for a seed, and refuse what can't be split."""

import polars as pl
import pytest

from training.config import SplitConfig
from training.data.index import SCHEMA
from training.data.splits import Split, make_split
from training.errors import DataError


def table(subjects: int = 6, cells: int = 4, joined: dict[str, str] | None = None) -> pl.DataFrame:
    """An index of 2 folds; `joined` maps a subject to the group that it shares."""
    rows = [
        {
            "path": f"{subject}-{cell}",
            "label": label,
            "subject": subject,
            "fold": number % 2,
            "width": 450,
            "height": 450,
            "sha256": f"{subject}-{cell}",
            "duplicate": False,
            "group": (joined or {}).get(subject, subject),
        }
        for label, prefix in (("ALL", ""), ("HEM", "H"))
        for number in range(subjects)
        for subject in [f"{prefix}{number}"]
        for cell in range(cells)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


KINDS = [
    SplitConfig(kind="fold", test_fold=0, parts=3),
    SplitConfig(kind="fold", test_fold=1, parts=3),
    SplitConfig(kind="subject", parts=3),
    SplitConfig(kind="subject", parts=5, seed=3),
]


@pytest.mark.parametrize("config", KINDS)
def test_no_group_is_on_two_sides(config: SplitConfig) -> None:
    cells = table(joined={"0": "0", "1": "0", "H2": "H2", "H5": "H2"}, subjects=10)
    groups = [set(cells[rows]["group"]) for rows in make_split(cells, config).parts().values()]
    assert all(groups)
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@pytest.mark.parametrize("config", KINDS)
def test_every_part_has_both_classes_and_no_cell_twice(config: SplitConfig) -> None:
    cells = table()
    split = make_split(cells, config) if config.parts == 3 else make_split(table(subjects=10), config)
    rows = [row for part in split.parts().values() for row in part.tolist()]
    assert len(rows) == len(set(rows))


def test_a_fold_split_tests_on_all_of_that_fold_and_trains_on_none_of_it() -> None:
    cells = table()
    split = make_split(cells, SplitConfig(kind="fold", test_fold=1, parts=3))
    assert set(cells[split.test]["fold"]) == {1}
    assert len(split.test) == (cells["fold"] == 1).sum()
    assert set(cells[split.train]["fold"]) == set(cells[split.validation]["fold"]) == {0}


def test_a_group_with_cells_in_the_test_fold_is_not_trained_on() -> None:
    cells = table(subjects=10, joined={"1": "0"})  # subject 0 is in fold 0, subject 1 in fold 1
    split = make_split(cells, SplitConfig(kind="fold", test_fold=1, parts=3))
    learnt = set(cells[split.train]["subject"]) | set(cells[split.validation]["subject"])
    assert "0" not in learnt
    assert "2" in learnt


def test_a_repeated_picture_is_used_once() -> None:
    cells = table().with_columns(duplicate=pl.col("path") == "3-1")
    split = make_split(cells, SplitConfig(kind="subject", parts=3))
    used = [row for part in split.parts().values() for row in part.tolist()]
    assert len(used) == len(cells) - 1


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    cells = table(subjects=12)

    def digest(seed: int) -> str:
        return make_split(cells, SplitConfig(kind="subject", parts=4, seed=seed)).sha256(cells)

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


def test_the_hash_does_not_depend_on_the_order_of_the_index() -> None:
    cells = table()
    split = make_split(cells, SplitConfig(kind="fold", parts=3))
    turned = cells.reverse()
    last = len(cells) - 1
    mirrored = Split(split.name, last - split.train, last - split.validation, last - split.test)
    assert mirrored.sha256(turned) == split.sha256(cells)


@pytest.mark.parametrize("config", KINDS)
def test_the_name_says_that_subjects_are_disjoint(config: SplitConfig) -> None:
    assert make_split(table(subjects=10), config).name.startswith("subject-disjoint")


def test_too_few_subjects_are_refused() -> None:
    with pytest.raises(DataError, match="7 parts need as many subject groups"):
        make_split(table(subjects=6), SplitConfig(kind="subject", parts=7))


def test_a_missing_fold_is_refused() -> None:
    with pytest.raises(DataError, match="no fold 2"):
        make_split(table(), SplitConfig(kind="fold", test_fold=2, parts=3))


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="each class"):
        make_split(table().filter(label="ALL"), SplitConfig(kind="subject", parts=3))
