"""A run's folder remembers who is in which part, whatever the index becomes."""

from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import run_config
from training.data.dataset import Data
from training.data.drawn import cell_bytes, write_dataset
from training.data.index import INDEX_FILE, build_index, write_index
from training.errors import RunError
from training.run import HeldOut, Run


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return indexed(write_dataset(tmp_path, folds=1, subjects=4, cells=2) / INDEX_FILE)


def indexed(file: Path) -> Path:
    write_index(build_index(file.parent, file), file)
    return file


@pytest.fixture
def run(index: Path, tmp_path: Path) -> Run:
    """As after a fit."""
    made = Run(tmp_path / "runs" / "tiny")
    made.start(run_config(), index, split_of(index))
    (made.folder / "weights.safetensors").write_bytes(b"")
    return made


def split_of(index: Path) -> str:
    data = Data.load(index, run_config(), index.parent / "cache")
    return data.split.sha256(data.cells)


def add_subject(index: Path) -> None:
    folder = next(index.parent.rglob("fold_0"))
    (folder / "all" / "UID_99_1_1_all.bmp").write_bytes(cell_bytes("ALL", 99))
    indexed(index)


def add_preliminary(index: Path) -> None:
    """Cells that are in no part of the split, before all others."""
    folder = index.parent / "a" / "C-NMC_test_prelim_phase_data"
    folder.mkdir(parents=True)
    (folder / "1.bmp").write_bytes(cell_bytes("ALL", 500))
    labels = "Patient_ID,new_names,labels\nUID_57_29_1_all.bmp,1.bmp,1\n"
    (folder.parent / "C-NMC_test_prelim_phase_data_labels.csv").write_text(labels)
    indexed(index)


def test_an_index_that_splits_otherwise_is_refused(run: Run, index: Path) -> None:
    add_subject(index)
    with pytest.raises(RunError, match="the index has changed since this run began"):
        run.load_data()
    with pytest.raises(RunError, match="the index has changed since this run began"):
        run.start(run_config(), index, split_of(index))


def test_another_configuration_is_named_before_its_other_split(run: Run, index: Path) -> None:
    with pytest.raises(RunError, match="another configuration"):
        run.start(run_config(split={"kind": "image"}), index, "another")


def test_cells_outside_the_split_may_come_and_move_no_held_out_answer(run: Run, index: Path) -> None:
    before = run.load_data()
    rows = np.concatenate([before.split.train, before.split.validation])
    logits = np.arange(2.0 * len(rows)).reshape(-1, 2)
    run.save_held_out(HeldOut(rows, logits), before)
    add_preliminary(index)
    after = run.load_data()
    found = run.held_out(after)
    assert found is not None
    assert after.cells[found.rows]["path"].to_list() == before.cells[rows]["path"].to_list()
    assert not np.array_equal(found.rows, rows)
    assert np.array_equal(found.logits, logits)


def test_a_run_of_an_earlier_version_is_read(run: Run) -> None:
    text = (run.folder / "config.json").read_text()
    (run.folder / "config.json").write_text(text.replace('"split_sha256"', '"forgotten"'))
    data = run.load_data()
    np.savez(run.folder / "held_out.npz", rows=data.split.train, logits=np.zeros((len(data.split.train), 2)))
    found = run.held_out(data)
    assert found is not None
    assert np.array_equal(found.rows, data.split.train)
