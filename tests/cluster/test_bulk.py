"""`leukoscope predict --ray` as a program, on a Ray that it starts itself: equal answers, kills, S3, errors."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.cluster.processes import worker_of
from tests.service.harness import ROOT, environment
from tests.stores import BUCKET, s3_server
from training.data.drawn import cell_bytes, write_dataset

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="runs by `make test-cluster`"),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="the extra 'ray' is not installed: make setup-ray"
    ),
]
_PATIENCE_S = 400.0


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small pictures, a zip archive, a broken picture, and a file that is no picture."""
    root = write_dataset(tmp_path_factory.mktemp("cells"), folds=1, subjects=3, cells=40)
    (root / "damaged.bmp").write_bytes(cell_bytes("ALL", 1)[:1000])
    (root / "notes.txt").write_text("no picture", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def expected(models_dir: Path, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """What the folder command says of the same pictures."""
    out = tmp_path_factory.mktemp("expected") / "r.parquet"
    code, said = predict(models_dir, cells, "--out", out, ray=False)
    assert code == 1, said
    return pl.read_parquet(out)


def start(models_dir: Path, *words: object, ray: bool = True, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app.cli", "predict", *map(str, words), *(["--ray"] if ray else [])]
    settings = environment(models_dir=models_dir, inference_threads=1)
    settings.pop("RAY_ADDRESS", None)
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, cwd=ROOT, env=settings | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def predict(models_dir: Path, *words: object, ray: bool = True, **variables: str) -> tuple[int, str]:
    process = start(models_dir, *words, ray=ray, **variables)
    said = ended(process)
    return process.returncode, said


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for a command's end, and return what it said."""
    try:
        return process.communicate(timeout=_PATIENCE_S)[0]
    finally:
        process.kill()


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not done():
        assert process.poll() is None, f"it was over before: {process.communicate()[0]}"
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def assert_alike(table: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Compare rows in any order: batches of another size may change the last digits."""
    assert_frame_equal(table.sort("file"), expected.sort("file"), abs_tol=1e-6)


def test_answers_are_those_of_the_folder_command(
    models_dir: Path, cells: Path, expected: pl.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    code, said = predict(models_dir, cells, "--out", out)
    assert code == 1, said
    assert "241 pictures found; 1 other files passed over." in said
    assert "241 of 241 pictures" in said
    table = pl.read_parquet(out)
    assert_alike(table, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
    assert "damaged or incomplete" in table.filter(pl.col("file").str.ends_with("damaged.bmp"))["error"][0]


def growing(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


@pytest.mark.parametrize("victim", ["the command", "a worker"])
def test_whatever_is_killed_no_row_is_lost_or_repeated(models_dir: Path, tmp_path: Path, victim: str) -> None:
    cells, out = tmp_path / "cells", tmp_path / "r.csv"
    cells.mkdir()
    picture = cell_bytes("ALL", 1)
    for number in range(1000):
        (cells / f"UID_{number % 7}_{number}_1_all.bmp").write_bytes(picture)
    process = start(models_dir, cells, "--out", out, "--workers", 1)
    wait_until(lambda: growing(out) > 64, process)
    killed = process.pid if victim == "the command" else worker_of(process.pid, "ray::MapWorker")
    os.kill(killed, signal.SIGKILL)
    said = ended(process)
    if victim == "the command":
        assert growing(out) < 1001
        code, said = predict(models_dir, cells, "--out", out)
        assert "have their row already" in said
    else:
        code = process.returncode
    assert code == 0, said
    table = pl.read_csv(out)
    assert table.height == table["file"].n_unique() == 1000
    assert table["error"].is_null().all()


def test_sigterm_keeps_what_is_answered(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    process = start(models_dir, cells, "--out", out)
    wait_until(lambda: growing(out) > 0, process)
    process.terminate()
    said = ended(process)
    assert process.returncode in {130, 1}, said  # 1 if all was answered meanwhile
    if process.returncode == 130:
        assert "the same command goes on from here" in said


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with s3_server():
        yield importlib.import_module("s3fs").S3FileSystem()


def test_from_bucket_to_bucket(models_dir: Path, cells: Path, expected: pl.DataFrame, s3: Any) -> None:
    s3.put(str(cells), f"{BUCKET}/slides/", recursive=True)
    out = f"s3://{BUCKET}/out/r.parquet"
    code, said = predict(models_dir, f"s3://{BUCKET}/slides/", "--out", out)
    assert code == 1, said
    there = pl.col("file").str.replace(cells.as_posix(), f"s3://{BUCKET}/slides/{cells.name}", literal=True)
    assert_alike(pl.read_parquet(s3.cat_file(out)), expected.with_columns(there))
    assert s3.find(f"{BUCKET}/out") == [f"{BUCKET}/out/r.parquet"]
    code, said = predict(models_dir, f"s3://{BUCKET}/slides/", "--out", out)
    assert "241 have their row already" in said


def test_a_cluster_that_is_not_there_and_a_model_that_is_not_whole(
    models_dir: Path, cells: Path, tmp_path: Path
) -> None:
    code, said = predict(models_dir, cells, "--out", tmp_path / "a.csv", RAY_ADDRESS="127.0.0.1:9")
    assert code == 3, said
    assert "Ray can't be used at RAY_ADDRESS=127.0.0.1:9" in said
    code, said = predict(tmp_path, cells, "--out", tmp_path / "b.csv")
    assert code == 3, said
    assert "the model can't be used" in said
