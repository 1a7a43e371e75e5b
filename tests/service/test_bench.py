"""The benchmark runs: it starts servers, asks them, and writes its tables. No figure is judged."""

import json
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.bench import precisions
from tests.bench.__main__ import main
from tests.bench.client import Load
from tests.bench.report import markdown, ratio
from tests.bench.rounds import StartError
from tests.models import write_models
from training.data.drawn import write_dataset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")


def test_two_contenders_side_by_side(models_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--here", "--no-extras", "--rounds", "2", "--seconds", "0.2", "--connections", "1", "3"]
    arguments += ["--only", "leukoscope", "fastapi", "--models", str(models_dir), "--out", str(out)]
    assert main([*arguments, "--linear", "20"]) == 0
    result = json.loads((out / "bench.json").read_text())
    assert [set(one) for one in result["rounds"]] == [{"ceiling", "leukoscope", "fastapi"}] * 2
    for one in result["rounds"]:
        assert one["ceiling"]["per_second"] > 0
        for name in ("leukoscope", "fastapi"):
            assert set(one[name]["loads"]) == {"1", "3"}
            assert all(load["answers"] > 0 and load["p50_s"] <= load["p99_s"] for load in one[name]["loads"].values())
            assert one[name]["rss_bytes"] > 10_000_000
    assert result["linearity"][-1]["images"] >= 20
    page = (out / "bench.md").read_text()
    assert page.count("| leukoscope |") == 3
    assert page.count("| fastapi |") == 3
    assert markdown(result) == page


def test_nothing_is_compared_without_a_model_that_runs(tmp_path: Path) -> None:
    models_dir = write_models(tmp_path / "models")
    (models_dir / "tiny" / "1.0.0" / "model.onnx").write_bytes(b"damaged")
    arguments = ["--here", "--no-extras", "--rounds", "1", "--seconds", "0.1", "--connections", "1"]
    with pytest.raises(StartError, match="bare"):
        main([*arguments, "--only", "leukoscope", "--models", str(models_dir), "--out", str(tmp_path / "out")])


def test_ratios_are_taken_within_a_round() -> None:
    drifting = [{"a": 10.0, "b": 5.0}, {"a": 100.0, "b": 50.0}, {"a": 4.0, "b": 2.0}]
    assert ratio(drifting, lambda one: one["a"], lambda one: one["b"]) == 2


def test_quantiles_of_a_load() -> None:
    load = Load(answers=4, seconds=2, latencies_s=[0.1, 0.2, 0.3, 0.4])
    assert (load.per_second, load.quantile_s(0.5), load.quantile_s(0.99)) == (2, 0.3, 0.4)


def test_engines_are_held_against_each_other_on_labelled_cells(
    models_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, folds=2, subjects=2, cells=3)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.bmp"))
    table = {
        "path": [str(file) for file in files],
        "label": [file.stem[-3:].upper() for file in files],
        "fold": [int(file.parent.parent.name[-1]) for file in files],
        "duplicate": [False for _ in files],
    }
    pl.DataFrame(table).write_parquet(tmp_path / "cells.parquet")
    assert precisions.main(["--models", str(models_dir), "--cells", str(tmp_path / "cells.parquet")]) == 0
    rows = {row.split("|")[1].strip(): row for row in capsys.readouterr().out.splitlines()[2:]}
    assert "12 of 12 | 0.0000 | 0.0000 | 0.0000" in rows["onnxruntime fp32"]
    if "openvino fp32" in rows:
        assert "12 of 12 | 0.0000 | 0.0000 | 0.0000" in rows["openvino fp32"]
