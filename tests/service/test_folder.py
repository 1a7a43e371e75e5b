"""`leukoscope predict` as a program: tables, resuming, exit codes, archives, a service that answers."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.security.keys import new_key
from tests.models import NAME, VERSION, write_models
from tests.service.harness import ROOT, ServerProcess, environment, run_cli
from training.data.drawn import cell_bytes, write_dataset


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 subjects of each class, 3 cells of each, and what else lies in folders."""
    root = write_dataset(tmp_path_factory.mktemp("cells"), folds=1, subjects=2, cells=3)
    (root / "notes.txt").write_text("no picture", encoding="utf-8")
    (root / "damaged.bmp").write_bytes(cell_bytes("ALL", 1)[:1000])
    (root / "._damaged.bmp").write_bytes(b"a Mac's notes")
    return root


def predict(models_dir: Path, *arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
    return run_cli("predict", *map(str, arguments), models_dir=models_dir, inference_threads=1, **settings)


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_folder_becomes_a_table_and_a_summary(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    result = predict(models_dir, cells, "--out", out)
    assert result.returncode == 1, result.stderr
    rows = read_csv(out)
    assert len(rows) == 13
    assert rows[0]["file"] == (cells / "damaged.bmp").as_posix()
    assert "damaged or incomplete" in rows[0]["error"]
    answered = [row for row in rows if not row["error"]]
    assert {row["subject"] for row in answered} == {"1", "2", "H1", "H2"}
    assert {(row["model"], row["version"]) for row in answered} == {(NAME, VERSION)}
    for row in answered:
        assert float(row["p_all"]) + float(row["p_hem"]) == pytest.approx(1)
        assert float(row["confidence"]) == max(float(row["p_all"]), float(row["p_hem"]))
    assert "13 pictures found; 2 other files passed over." in result.stderr
    line = next(line for line in result.stderr.splitlines() if line.strip().startswith("H1 "))
    assert line.split()[1] == "3"


def test_all_answered_is_exit_code_0(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    assert predict(models_dir, f"{cells}/**/UID_*.bmp", "--out", tmp_path / "results.jsonl").returncode == 0


def test_without_out_csv_goes_to_standard_output(models_dir: Path, cells: Path) -> None:
    result = predict(models_dir, next(cells.rglob("UID_*.bmp")))
    assert result.returncode == 0
    assert len(list(csv.DictReader(result.stdout.splitlines()))) == 1


def test_all_formats_hold_the_same_rows(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        assert predict(models_dir, cells, "--out", tmp_path / f"r.{suffix}").returncode == 1
    table = pl.read_parquet(tmp_path / "r.parquet").to_dicts()
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert table == lines
    assert [row["file"] for row in read_csv(tmp_path / "r.csv")] == [row["file"] for row in lines]
    assert [row["confidence"] for row in read_csv(tmp_path / "r.csv")] == [
        "" if row["confidence"] is None else str(row["confidence"]) for row in lines
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"r.csv", "r.jsonl", "r.parquet"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_second_run_adds_only_what_is_new(models_dir: Path, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "cells"
    folder.mkdir()
    out = tmp_path / f"r.{suffix}"
    (folder / "UID_1_1_1_all.bmp").write_bytes(cell_bytes("ALL", 1))
    assert predict(models_dir, folder, "--out", out).returncode == 0
    before = out.read_bytes()
    (folder / "UID_2_1_1_all.bmp").write_bytes(cell_bytes("ALL", 2))
    result = predict(models_dir, folder, "--out", out)
    assert result.returncode == 0
    assert "2 pictures found; 1 have their row already." in result.stderr
    if suffix != "parquet":
        assert out.read_bytes().startswith(before)
    # The summary is of all rows, not of this run's alone.
    assert [line.split()[0] for line in result.stderr.splitlines() if line.strip()[:1] in {"1", "2"}][-2:] == ["1", "2"]


@pytest.mark.skipif(os.name != "posix", reason="kills with a signal")
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_after_a_kill_it_goes_on_without_loss_or_repeat(models_dir: Path, tmp_path: Path, suffix: str) -> None:
    cells = tmp_path / "cells"
    cells.mkdir()
    picture = cell_bytes("ALL", 1)
    for number in range(400):
        (cells / f"UID_{number % 7}_{number}_1_all.bmp").write_bytes(picture)
    out = tmp_path / f"r.{suffix}"
    growing = out if suffix == "csv" else tmp_path / "r.parquet.part.jsonl"
    command = [sys.executable, "-m", "app.cli", "predict", str(cells), "--out", str(out)]
    settings = environment(models_dir=models_dir, inference_threads=1)
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, cwd=ROOT, env=settings, stderr=subprocess.DEVNULL
    )
    deadline_s = time.monotonic() + 60
    while not growing.exists() or growing.read_bytes().count(b"\n") < 33:
        assert process.poll() is None, "it was over before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with growing.open("ab") as file:
        # As a kill in the middle of a write leaves it.
        file.write(b'"/cells/half of a\n row' if suffix == "csv" else b'{"file":"/cells/half of a')
    assert predict(models_dir, cells, "--out", out).returncode == 0
    files = [row["file"] for row in read_csv(out)] if suffix == "csv" else pl.read_parquet(out)["file"].to_list()
    assert sorted(files) == sorted(path.as_posix() for path in cells.iterdir())


def test_failed_rows_are_tried_again_when_asked(models_dir: Path, tmp_path: Path) -> None:
    cell = tmp_path / "cell.bmp"
    out = tmp_path / "r.csv"
    cell.write_bytes(b"not yet")
    assert predict(models_dir, cell, "--out", out).returncode == 1
    cell.write_bytes(cell_bytes("HEM", 3))
    assert predict(models_dir, cell, "--out", out).returncode == 1
    assert predict(models_dir, cell, "--out", out, "--retry-failed").returncode == 0
    assert [row["error"] for row in read_csv(out)] == [""]


def test_answers_of_two_models_are_not_mixed(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    one, *more = sorted(cells.rglob("UID_*.bmp"))
    assert predict(models_dir, one, "--out", out).returncode == 0
    other = write_models(tmp_path / "models", version="2.0.0")
    result = predict(other, *more, "--out", out)
    assert result.returncode == 2
    assert f"rows by {NAME}@{VERSION}, but {NAME}@2.0.0 answers now" in result.stderr
    assert predict(other, *more, "--out", out, "--fresh").returncode == 0
    assert {row["version"] for row in read_csv(out)} == {"2.0.0"}


def test_archives_are_read_without_unpacking(models_dir: Path, tmp_path: Path) -> None:
    archive = tmp_path / "cells.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/UID_H3_1_1_hem.bmp", cell_bytes("HEM", 1))
        file.writestr("../../escape.bmp", cell_bytes("HEM", 2))
        file.writestr("__MACOSX/a/._UID_H3_1_1_hem.bmp", b"notes")
        file.writestr("bomb.bmp", bytes(2_000_000))
    before = sorted(tmp_path.parent.parent.glob("*"))
    result = predict(models_dir, archive, "--out", tmp_path / "r.csv", max_request_bytes=1_000_000)
    assert result.returncode == 1
    rows = read_csv(tmp_path / "r.csv")
    assert [(row["file"].removeprefix(archive.as_posix()), row["subject"]) for row in rows] == [
        ("/a/UID_H3_1_1_hem.bmp", "H3"),
        ("/../../escape.bmp", ""),
        ("/bomb.bmp", ""),
    ]
    assert rows[2]["error"] == "The file has 2,000,000 bytes; at most 1,000,000 are read."
    assert sorted(tmp_path.parent.parent.glob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["nothing-*.bmp"], "nothing-*.bmp: the pattern matches nothing"),
        (["{empty}"], "no pictures found"),
        (["{cell}", "--out", "results.xlsx"], "expected a name that ends in .csv, .jsonl or .parquet"),
        (["{cell}", "--out", "nowhere/results.csv"], "there is no folder nowhere"),
        (["{cell}", "--out", "{other}"], "is there already, but is no output of this command"),
        (["{cell}", "--subject-pattern", "("], "is no regular expression"),
        (["{cell}", "--subject-pattern", "x"], "has no group named subject"),
        (["{cell}", "--subject-pattern", "(?P<subject>x)", "--subject-folder"], "exclude each other"),
        (["{cell}", "--server", "127.0.0.1:8000"], "begins with http:// or https://"),
        (["{cell}", "--api-key-file", "key"], "--api-key-file key: can't be read"),
    ],
)
def test_wrong_words_are_exit_code_2(models_dir: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    places = {"empty": tmp_path / "empty", "cell": tmp_path / "cell.bmp", "other": tmp_path / "other.csv"}
    places["empty"].mkdir()
    places["cell"].write_bytes(cell_bytes("ALL", 1))
    places["other"].write_text("my,precious\ntable,without end", encoding="utf-8")
    result = predict(models_dir, *(argument.format(**places) for argument in arguments))
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert places["other"].read_text(encoding="utf-8") == "my,precious\ntable,without end"


def test_a_model_that_cannot_be_used_is_exit_code_3(cells: Path, tmp_path: Path) -> None:
    result = predict(tmp_path / "no-models", cells)
    assert result.returncode == 3
    assert "the model can't be used: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_service_gives_the_same_table(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", models_dir=models_dir) as server:
        assert predict(models_dir, cells, "--out", tmp_path / "remote.csv", "--server", server.url).returncode == 1
    assert predict(models_dir, cells, "--out", tmp_path / "local.csv").returncode == 1

    def figures(file: Path) -> list[dict[str, Any]]:
        return read_csv(tmp_path / file)

    assert figures(tmp_path / "remote.csv") == figures(tmp_path / "local.csv")


def test_a_service_that_wants_a_key(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    secret, key = new_key("lab")
    (tmp_path / "key").write_text(secret + "\n", encoding="utf-8")
    picture = next(cells.rglob("UID_*.bmp"))
    with ServerProcess(tmp_path / "log", models_dir=models_dir, api_keys=key.setting) as server:
        arguments = [picture, "--server", server.url]
        assert predict(models_dir, *arguments, "--api-key-file", tmp_path / "key").returncode == 0
        assert predict(models_dir, *arguments, api_key=secret).returncode == 0
        refused = predict(models_dir, *arguments)
    assert refused.returncode == 3
    assert "API key" in refused.stderr


def test_a_service_that_is_gone_is_exit_code_3(models_dir: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    result = predict(models_dir, cells, "--out", out, "--server", "http://127.0.0.1:9", "--patience", "1")
    assert result.returncode == 3
    assert "http://127.0.0.1:9: no answer for 1 s" in result.stderr
    assert read_csv(out) == []
