"""The index: names, groups, repeats, and what is left out."""

import io
import os
from pathlib import Path

import polars as pl
import pytest

from training.data.drawn import cell_bytes, draw_cell, write_dataset
from training.data.index import INDEX_FILE, SCHEMA, build_index, load_index, write_index
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
    ("name", "content", "kind", "reason"),
    [
        ("cell.bmp", b"", "misnamed", "the name is not"),
        ("UID_5_1_1_hem.bmp", b"", "misnamed", "the name says HEM"),
        ("UID_5_1_1_all.bmp", b"", "unreadable", "empty"),
        ("UID_5_1_2_all.bmp", b"BM not a picture", "unreadable", "can be read"),
        ("UID_5_1_3_all.bmp", cell_bytes("ALL", 1)[:4000], "unreadable", "damaged"),
    ],
)
def test_what_is_wrong_is_named_and_left_out(data: Path, name: str, content: bytes, kind: str, reason: str) -> None:
    (fold(data, 0, "all") / name).write_bytes(content)
    result = build_index(data, data / INDEX_FILE)
    assert len(result.cells) == 8
    mine = [(fault.kind, reason in fault.reason) for fault in result.faults if fault.path.name == name]
    assert mine == [(kind, True)]


def test_faults_are_counted_and_written_beside_the_index(data: Path) -> None:
    (fold(data, 0, "all") / "cell.bmp").write_bytes(b"")
    write_index(build_index(data, data / INDEX_FILE), data / INDEX_FILE)
    faults = pl.read_csv(data / "cells.faults.csv")
    assert dict(faults["kind"].value_counts().iter_rows()) == {"misnamed": 1, "missing": 2}
    assert "3527 were published" in faults.filter(kind="missing")["reason"][0]


def test_an_odd_size_and_a_repeat_are_named_and_kept(data: Path) -> None:
    buffer = io.BytesIO()
    draw_cell("ALL", 5, 600).save(buffer, format="PNG")
    (fold(data, 0, "all") / "UID_5_1_1_all.png").write_bytes(buffer.getvalue())
    buffer = io.BytesIO()
    draw_cell("ALL", 1001).save(buffer, format="TIFF")
    (fold(data, 1, "all") / "UID_77_1_1_all.tiff").write_bytes(buffer.getvalue())
    result = build_index(data, data / INDEX_FILE)
    assert len(result.cells) == 10
    faults = {fault.kind: (fault.path.name, fault.reason) for fault in result.faults}
    assert faults["odd size"] == ("UID_5_1_1_all.png", "600 x 600 px; most are 450 x 450")
    # The same pixels in another format are the same picture.
    assert faults["duplicated"][0] == "UID_77_1_1_all.tiff"
    groups = dict(result.cells.select("subject", "group").iter_rows())
    assert groups["77"] == groups["1"]


def test_a_picture_with_two_labels_and_a_subject_with_two_classes_are_named(tmp_path: Path) -> None:
    for name, number in (("all/p1/1", 1), ("all/p1/2", 2), ("hem/P1/1", 3), ("all/p2/1", 4), ("hem/p3/1", 4)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.bmp").write_bytes(cell_bytes("ALL", number))
    result = build_index(tmp_path, tmp_path / INDEX_FILE)
    assert len(result.cells) == 5
    named = {(fault.kind, fault.path.relative_to(tmp_path).as_posix()): fault.reason for fault in result.faults}
    assert set(named) == {
        ("duplicated", "hem/p3/1.bmp"),
        ("two labels", "all/p2/1.bmp"),
        ("two labels", "hem/p3/1.bmp"),
        ("two classes", "hem/P1/1.bmp"),
    }
    assert named["two labels", "all/p2/1.bmp"].startswith("ALL here, but")
    assert named["two classes", "hem/P1/1.bmp"].startswith("subject P1 has ALL and HEM cells")


@pytest.mark.parametrize("suffix", ["bmp", "PNG", "jpg", "jpeg", "tif", "webp"])
def test_all_formats_are_read(tmp_path: Path, suffix: str) -> None:
    for label in ("ALL", "HEM"):
        (tmp_path / label.lower()).mkdir()
        draw_cell(label, 3).save(tmp_path / label.lower() / f"cell.{suffix}")
    assert sorted(index(tmp_path)["label"]) == ["ALL", "HEM"]


def test_plain_folders_take_subjects_from_names_or_folders_or_know_none(tmp_path: Path) -> None:
    for name in ("ALL/UID_9_1_1_all.bmp", "ALL/anna/1.bmp", "hem/2.bmp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cell_bytes("ALL", len(name)))
    rows = {row["path"]: row for row in index(tmp_path).iter_rows(named=True)}
    assert [rows[path]["subject"] for path in sorted(rows)] == ["9", "ANNA", None]
    assert {row["source"] for row in rows.values()} == {"own"}
    assert rows["hem/2.bmp"]["group"] is None


def test_links_are_followed_and_never_in_a_circle(data: Path, tmp_path: Path) -> None:
    top = tmp_path / "linked"
    top.mkdir()
    (top / "download").symlink_to(data)
    (data / "training_data" / "round").symlink_to(data)
    cells = build_index(top, top / INDEX_FILE).cells
    assert len(cells) == len(cells["path"].unique()) == 8
    assert set(cells["source"]) == {"training"}


def test_what_is_hidden_is_no_cell(data: Path) -> None:
    for name in (".ipynb_checkpoints/UID_1_1_1_all.bmp", "._UID_1_1_1_all.bmp", "__MACOSX/UID_1_1_1_all.bmp"):
        path = fold(data, 0, "all") / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cell_bytes("ALL", 7))
    result = build_index(data, data / INDEX_FILE)
    assert len(result.cells) == 8
    assert {fault.kind for fault in result.faults} == {"missing"}


def test_the_preliminary_test_can_be_named_itself(data: Path) -> None:
    folder = preliminary(data, "UID_57_29_1_all.bmp,1.bmp,1\nUID_h31_29_1_hem.bmp,2.bmp,0\n")
    assert index(folder)["subject"].to_list() == ["57", "H31"]


def preliminary(data: Path, rows: str, pictures: int = 2) -> Path:
    folder = data / "validation_data" / "C-NMC_test_prelim_phase_data"
    folder.mkdir(parents=True)
    for number in range(1, pictures + 1):
        (folder / f"{number}.bmp").write_bytes(cell_bytes("ALL", 500 + number))
    header = "Patient_ID,new_names,labels\n"
    (folder.parent / "C-NMC_test_prelim_phase_data_labels.csv").write_text(header + rows)
    return folder


def test_the_preliminary_test_takes_labels_and_subjects_from_its_file(data: Path) -> None:
    preliminary(data, "UID_57_29_1_all.bmp,1.bmp,1\nUID_h31_29_1_hem.bmp,2.bmp,0\n")
    cells = index(data).filter(source="preliminary")
    assert cells.select("subject", "label", "fold").rows() == [("57", "ALL", None), ("H31", "HEM", None)]


@pytest.mark.parametrize(
    ("rows", "pictures", "kind", "reason"),
    [
        ("UID_57_29_1_all.bmp,1.bmp,0\n", 0, "misnamed", "line 2: the label '0' contradicts"),
        ("57,1.bmp,1\n", 0, "misnamed", "line 2: Patient_ID '57' is not"),
        ("UID_57_29_1_all.bmp,1.bmp,1\n" * 2, 1, "misnamed", "line 3: 1.bmp has two rows"),
        ("UID_57_29_1_all.bmp,7.bmp,1\n", 0, "missing", "not there"),
        ("", 1, "misnamed", "no (good) row"),
    ],
)
def test_faults_of_the_file_of_labels(data: Path, rows: str, pictures: int, kind: str, reason: str) -> None:
    preliminary(data, rows, pictures)
    faults = build_index(data, data / INDEX_FILE).faults
    assert [fault.kind for fault in faults if reason in fault.reason] == [kind]


def test_a_missing_file_of_labels_is_named(data: Path) -> None:
    folder = preliminary(data, "")
    (folder.parent / "C-NMC_test_prelim_phase_data_labels.csv").unlink()
    reasons = [fault.reason for fault in build_index(data, data / INDEX_FILE).faults]
    assert "the preliminary test has no labels without it" in reasons
    assert sum("no (good) row" in reason for reason in reasons) == 2


def test_the_final_test_has_no_labels(data: Path) -> None:
    folder = data / "testing_data" / "C-NMC_test_final_phase_data"
    folder.mkdir(parents=True)
    (folder / "1.bmp").write_bytes(cell_bytes("HEM", 77))
    row = index(data).filter(source="final").row(0, named=True)
    assert (row["label"], row["subject"], row["group"], row["width"]) == (None, None, None, 450)


def test_what_is_known_by_size_and_time_is_not_read_again(data: Path) -> None:
    file = data / INDEX_FILE
    first = build_index(data, file)
    write_index(first, file)
    assert first.reused == 0
    changed = fold(data, 0, "all") / "UID_1_1_1_all.bmp"
    changed.write_bytes(cell_bytes("ALL", 4711))
    os.utime(changed, ns=(1, 1))
    again = build_index(data, file)
    assert again.reused == 7
    differing = again.cells["sha256"] != first.cells["sha256"]
    assert again.cells.filter(differing)["subject"].to_list() == ["1"]


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
    assert {fault.kind for fault in result.faults} <= {"missing"}
    assert len(result.cells) == 16
    assert set(result.cells["label"]) == {"ALL", "HEM"}
    assert set(result.cells["width"]) == {450}
