"""The index: names, groups, repeats, and what is left out."""

from pathlib import Path

import polars as pl
import pytest

from training.data.drawn import cell_bytes, write_dataset
from training.data.index import INDEX_FILE, SCHEMA, build_index, load_index
from training.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path, folds=2, subjects=2, cells=1)


def fold(data: Path, number: int, label: str) -> Path:
    return data / "training_data" / f"fold_{number}" / label


def index(data: Path) -> pl.DataFrame:
    return build_index(data, data / INDEX_FILE).cells


def test_each_cell_is_a_row_with_the_facts_of_its_name(data: Path) -> None:
    cells = index(data)
    assert cells.schema == SCHEMA
    assert len(cells) == 8
    row = cells.filter(path="training_data/fold_1/hem/UID_H3_1_1_hem.bmp").row(0, named=True)
    assert (row["label"], row["subject"], row["fold"]) == ("HEM", "H3", 1)
    assert (row["width"], row["height"], row["duplicate"]) == (450, 450, False)


def test_subject_3_and_subject_h3_are_different_people(data: Path) -> None:
    groups = dict(index(data).select("subject", "group").iter_rows())
    assert groups["3"] != groups["H3"]


def test_a_lower_case_h_is_the_same_subject(data: Path) -> None:
    (fold(data, 0, "hem") / "UID_h1_9_1_hem.bmp").write_bytes(cell_bytes("HEM", 99))
    assert "H1" in set(index(data)["subject"])
    assert "h1" not in set(index(data)["subject"])


def test_subjects_that_share_a_picture_are_one_group_and_the_picture_counts_once(data: Path) -> None:
    picture = (fold(data, 0, "all") / "UID_1_1_1_all.bmp").read_bytes()
    (fold(data, 1, "all") / "UID_77_1_1_all.bmp").write_bytes(picture)
    (fold(data, 1, "all") / "UID_77_2_1_all.bmp").write_bytes(cell_bytes("ALL", 1234))
    cells = index(data)
    groups = dict(cells.select("subject", "group").iter_rows())
    assert groups["77"] == groups["1"]
    assert cells["duplicate"].sum() == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cell.bmp", b"", "the name is not"),
        ("UID_5_1_1_hem.bmp", b"", "the name says HEM"),
        ("UID_5_1_1_all.bmp", b"", "empty"),
        ("UID_5_1_2_all.bmp", b"BM not a picture", "can be read"),
        ("UID_5_1_3_all.bmp", cell_bytes("ALL", 1)[:4000], "damaged"),
    ],
)
def test_what_is_wrong_is_named_and_left_out(data: Path, name: str, content: bytes, reason: str) -> None:
    (fold(data, 0, "all") / name).write_bytes(content)
    result = build_index(data, data / INDEX_FILE)
    assert len(result.cells) == 8
    assert [(path.name, reason in why) for path, why in result.problems] == [(name, True)]


def test_paths_are_relative_to_where_the_index_is(data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "cells.parquet"
    elsewhere.parent.mkdir()
    cells = build_index(data, elsewhere).cells
    assert all((elsewhere.parent / path).is_file() for path in cells["path"])


@pytest.mark.parametrize("content", [None, "empty", "strangers"])
def test_a_folder_without_cells_is_an_error_that_says_what_was_expected(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "data"
    if content:
        folder.mkdir()
    if content == "strangers":
        (folder / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match="expected a C-NMC download"):
        build_index(folder, folder / INDEX_FILE)


def test_a_file_that_is_no_index_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leukoscope-train index"):
        load_index(tmp_path / "missing.parquet")
    other = tmp_path / "other.parquet"
    pl.DataFrame({"path": ["a"]}).write_parquet(other)
    with pytest.raises(DataError, match="columns"):
        load_index(other)


def test_real_cells(real_data: Path) -> None:
    result = build_index(real_data, real_data / INDEX_FILE)
    assert not result.problems
    assert len(result.cells) == 16
    assert set(result.cells["label"]) == {"ALL", "HEM"}
    assert set(result.cells["width"]) == {450}
