"""Splits keep every subject group on one side, repeat for a seed, and refuse what can't be split."""

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.data.index import with_groups
from training.data.splits import Split, make_split
from training.errors import DataError
from training.tables import SplitConfig


def table(subjects: int = 6, cells: int = 4, joined: dict[str, str] | None = None) -> pl.DataFrame:
    """An index of 2 folds; `joined` maps a subject to another, one of whose pictures it shares."""
    rows = [
        row(f"{subject}-{cell}", label, subject, number % 2)
        for label, prefix in (("ALL", ""), ("HEM", "H"))
        for number in range(subjects)
        for subject in [f"{prefix}{number}"]
        for cell in range(cells)
    ]
    for subject, other in (joined or {}).items():
        mine = [row for row in rows if row["subject"] == subject]
        mine[0]["pixels"] = next(row["pixels"] for row in rows if row["subject"] == other)
    return with_groups(rows)


def row(name: str, label: str, subject: str | None, fold: int | None, source: str = "training") -> dict[str, Any]:
    facts = {"path": name, "source": source, "label": label, "subject": subject, "fold": fold}
    size = {"width": 450, "height": 450, "bytes": 1, "modified_ns": 1}
    return facts | size | {"sha256": name, "pixels": name}


DISJOINT_KINDS = [
    SplitConfig(kind="fold", test_fold=0, parts=3),
    SplitConfig(kind="fold", test_fold=1, parts=3),
    SplitConfig(kind="subject", parts=3),
    SplitConfig(kind="subject", parts=5, seed=3),
    SplitConfig(kind="subject", parts=4, part=3),
]


@pytest.mark.parametrize("config", DISJOINT_KINDS)
def test_no_group_is_on_two_sides(config: SplitConfig) -> None:
    cells = table(joined={"1": "0", "H5": "H2"}, subjects=10)
    groups = [set(cells[rows]["group"]) for rows in make_split(cells, config).parts().values()]
    assert all(groups)
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@pytest.mark.parametrize("config", DISJOINT_KINDS)
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
    cells = table(joined={"3": "1"})
    split = make_split(cells, SplitConfig(kind="subject", parts=3))
    used = [row for part in split.parts().values() for row in part.tolist()]
    assert len(used) == len(cells) - 1


def test_a_picture_of_the_test_fold_counts_there_though_it_stands_in_another_fold_too() -> None:
    cells = table(subjects=10, joined={"1": "0"})
    split = make_split(cells, SplitConfig(kind="fold", test_fold=1, parts=3))
    assert len(split.test) == (cells["fold"] == 1).sum()


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


@pytest.mark.parametrize("config", DISJOINT_KINDS)
def test_the_name_says_that_subjects_are_disjoint(config: SplitConfig) -> None:
    assert make_split(table(subjects=10), config).name.startswith("subject-disjoint")


def test_too_few_subjects_are_refused() -> None:
    with pytest.raises(DataError, match="7 parts need as many subject groups of each class; there are 6 ALL, 6 HEM"):
        make_split(table(subjects=6), SplitConfig(kind="subject", parts=7))


def test_a_missing_fold_is_refused() -> None:
    with pytest.raises(DataError, match=r"no fold 2; it has \[0, 1\]"):
        make_split(table(), SplitConfig(kind="fold", test_fold=2, parts=3))
    with pytest.raises(DataError, match="no fold 1; cells of one's own have none: use --split subject:0"):
        make_split(both_classes(0, 6, 6), SplitConfig(kind="fold", parts=3))


@st.composite
def indexes(draw: st.DrawFn) -> pl.DataFrame:
    """Any index: subjects of any size and of one class or both, in any fold, some of which share pictures."""
    rows = []
    for label, prefix in (("ALL", ""), ("HEM", draw(st.sampled_from(["", "H"])))):
        first = draw(st.integers(0, 4))
        sizes = draw(st.lists(st.integers(1, 5), min_size=6, max_size=14))
        for number, size in enumerate(sizes, first):
            fold = draw(st.integers(0, 2))
            rows += [row(f"{label}{number}-{cell}", label, f"{prefix}{number}", fold) for cell in range(size)]
    for one, other in draw(st.lists(st.tuples(*[st.sampled_from(rows)] * 2), max_size=4)):
        one["pixels"] = other["pixels"]
    return with_groups(rows)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cells=indexes(),
    kind=st.sampled_from(["fold", "subject"]),
    number=st.integers(0, 2),
    parts=st.integers(3, 4),
    seed=st.integers(0, 3),
)
def test_whatever_the_index_no_group_and_no_picture_is_on_two_sides(
    cells: pl.DataFrame, kind: str, number: int, parts: int, seed: int
) -> None:
    config = SplitConfig.model_validate(
        {"kind": kind, "test_fold": number, "part": number, "parts": parts, "seed": seed}
    )
    try:
        split = make_split(cells, config)
    except DataError:
        return
    for column in ("group", "pixels"):
        sides = [set(cells[rows][column]) for rows in split.parts().values()]
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]
    for rows in split.parts().values():
        assert len(set(cells[rows]["pixels"])) == len(rows)
        told = cells.filter(pl.col("pixels").is_in(cells[rows]["pixels"].to_list()))
        assert told.group_by("pixels").agg(pl.col("label").n_unique())["label"].max() == 1
    assert split.sha256(cells) == make_split(cells, config).sha256(cells)


def test_the_parts_of_a_cross_validation_test_every_cell_once() -> None:
    cells = table(subjects=10)
    splits = [make_split(cells, SplitConfig(kind="subject", parts=5, part=part)) for part in range(5)]
    tested = np.concatenate([split.test for split in splits])
    assert sorted(tested) == list(range(len(cells)))
    for one, following in pairwise(splits):
        assert set(one.validation) == set(following.test)


def test_the_split_by_image_is_the_notebooks_and_says_that_it_leaks() -> None:
    rows = [row(f"{i}", "ALL" if i < 7272 else "HEM", f"{'H' if i >= 7272 else ''}{i % 30}", 0) for i in range(10_661)]
    cells = with_groups(rows)
    split = make_split(cells, SplitConfig(kind="image", seed=123))
    assert [len(part) for part in split.parts().values()] == [7462, 1599, 1600]
    assert cells[split.test]["label"].value_counts().sort("label")["count"].to_list() == [1091, 509]
    assert split.leaks
    assert "LEAKING" in split.name
    assert set(cells[split.train]["subject"]) & set(cells[split.test]["subject"])


def both_classes(mixed: int, ill: int, well: int) -> pl.DataFrame:
    """An index of subjects who have cells of both classes, and of subjects with one."""
    kinds = [("B", mixed, ("ALL", "HEM")), ("", ill, ("ALL",)), ("H", well, ("HEM",))]
    return with_groups(
        [
            row(f"{prefix}{number}-{label}-{cell}", label, f"{prefix}{number}", None, "own")
            for prefix, count, labels in kinds
            for number in range(count)
            for label in labels
            for cell in range(3)
        ]
    )


@pytest.mark.parametrize(("mixed", "ill", "well"), [(3, 7, 7), (8, 0, 0), (5, 6, 1), (5, 1, 6)])
def test_subjects_with_cells_of_both_classes_stay_on_one_side(mixed: int, ill: int, well: int) -> None:
    cells = both_classes(mixed, ill, well)
    tested: list[int] = []
    for part in range(4):
        split = make_split(cells, SplitConfig(kind="subject", parts=4, part=part))
        sides = [set(cells[rows]["group"]) for rows in split.parts().values()]
        assert sum(map(len, sides)) == len(set.union(*sides)) == mixed + ill + well
        tested += split.test.tolist()
    assert sorted(tested) == list(range(len(cells)))


def test_a_picture_with_both_labels_is_in_no_honest_part() -> None:
    rows = table(subjects=10).drop("duplicate", "group", "duplicate_group").to_dicts()
    doubtful = [next(entry for entry in rows if entry["subject"] == subject) for subject in ("1", "H1")]
    doubtful[0]["pixels"] = doubtful[1]["pixels"]
    # A picture of the final test has no label that could contradict.
    unlabelled = row("f1", "ALL", None, None, "final") | {"label": None, "pixels": rows[-1]["pixels"]}
    cells = with_groups([*rows, unlabelled])
    for config in (SplitConfig(kind="subject", parts=3), SplitConfig(kind="fold", test_fold=1, parts=3)):
        used = cells[np.concatenate(list(make_split(cells, config).parts().values()))]
        assert not {entry["path"] for entry in doubtful} & set(used["path"])
        assert rows[-1]["path"] in set(used["path"])
    as_published = np.concatenate(list(make_split(cells, SplitConfig(kind="image")).parts().values()))
    assert len(as_published) == len(rows)


def test_folds_can_be_left_out() -> None:
    cells = table(subjects=12)
    assert set(cells[make_split(cells, SplitConfig(kind="image", folds=(1,))).train]["fold"]) == {1}
    with pytest.raises(DataError, match="no fold 1; it has"):
        make_split(cells, SplitConfig(kind="fold", folds=(0,), test_fold=1, parts=3))


def test_the_preliminary_test_set_tests_and_its_subjects_are_not_learnt_from() -> None:
    extra = [row("p1", "ALL", "2", None, "preliminary"), row("p2", "HEM", "H99", None, "preliminary")]
    unlabelled = row("f1", "ALL", None, None, "final") | {"label": None}
    cells = with_groups(
        [*table(subjects=8).drop("duplicate", "group", "duplicate_group").to_dicts(), *extra, unlabelled]
    )
    split = make_split(cells, SplitConfig(kind="preliminary", parts=3))
    assert cells[split.test]["path"].to_list() == ["p1", "p2"]
    learnt = cells[np.concatenate([split.train, split.validation])]
    assert "2" not in set(learnt["subject"])
    assert set(learnt["source"]) == {"training"}
    with pytest.raises(DataError, match="no cells of the preliminary"):
        make_split(table(), SplitConfig(kind="preliminary", parts=3))


def test_cells_without_a_subject_can_only_be_split_by_image() -> None:
    rows = [row(f"{i}", label, None, None, "own") for label in ("ALL", "HEM") for i in range(20)]
    for number, entry in enumerate(rows):
        entry["pixels"] = str(number)
    assert make_split(with_groups(rows), SplitConfig(kind="image")).leaks
    with pytest.raises(DataError, match="40 cells have no subject"):
        make_split(with_groups(rows), SplitConfig(kind="subject", parts=3))


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="each class"):
        make_split(table().filter(label="ALL"), SplitConfig(kind="subject", parts=3))
