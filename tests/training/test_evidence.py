"""training/RESULTS.md is what the kept reports say, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.models import write_models
from tests.training.conftest import run_config
from training.cli import app
from training.compare import read_reports, results_page
from training.errors import RunError
from training.evidence import EVIDENCE, keep, kept
from training.run import Run

ROOT = Path(__file__).resolve().parent.parent.parent


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


@pytest.fixture
def a_report() -> dict[str, Any]:
    """A report that was measured."""
    report = report_of(ROOT / EVIDENCE / "floor-fold-1")
    return report | {"model": "tiny", "export": {"precision": "fp32"}}


@pytest.fixture
def run(a_report: dict[str, Any], tmp_path: Path) -> Run:
    """An evaluated run, of weights in a file."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    start = {"kind": "file", "file": str(weights), "licence": "ours"}
    made = Run(tmp_path / "runs" / "tiny-fold-1")
    made.start(run_config(model={"network": "efficientnet-lite0", "start": start}), tmp_path / "cells.parquet", "")
    (made.folder / "report.json").write_text(json.dumps(a_report))
    return made


def test_the_results_are_those_of_the_kept_reports() -> None:
    page = results_page(read_reports(kept(ROOT / EVIDENCE)))
    assert (ROOT / "training" / "RESULTS.md").read_text(encoding="utf-8") == page, "run leukoscope-train results"


@pytest.mark.parametrize("folder", kept(ROOT / EVIDENCE), ids=lambda folder: folder.name)
def test_kept_reports_name_no_place_of_a_machine(folder: Path) -> None:
    text = (folder / "report.json").read_text(encoding="utf-8")
    assert '"/' not in text
    assert '"runs/' not in text


def test_a_kept_run_has_its_figures_and_what_made_them(run: Run, tmp_path: Path, a_report: dict[str, Any]) -> None:
    folder = keep(run.folder, tmp_path / "evidence")
    assert kept(tmp_path / "evidence") == [folder]
    stored = report_of(folder)
    lineage = stored.pop("lineage")
    assert stored == {name: value for name, value in a_report.items() if name not in {"export", "lineage"}}
    assert lineage[0]["configuration"]["model"]["start"]["file"] == "weights.safetensors"
    assert len(lineage[0]["start_file_sha256"]) == 64
    assert str(tmp_path) not in (folder / "report.json").read_text()


def test_a_model_of_all_subjects_is_kept_by_its_name_and_names_what_is_missing(
    a_report: dict[str, Any], tmp_path: Path
) -> None:
    model = write_models(tmp_path / "models") / "tiny" / "1.0.0"
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["provenance"]["lineage"] = [{"configuration": run_config().model_dump(mode="json")}]
    (model / "manifest.json").write_text(json.dumps(manifest))
    a_report["split"]["judged_by"] = [{"run": "tiny-fold-0", "name": "fold 0", "sha256": "0"}]
    (model / "report.json").write_text(json.dumps(a_report))
    folder = keep(model, tmp_path / "evidence")
    assert folder.name == "tiny"
    said = "Their own reports are not kept here: tiny-fold-0 (judged tiny)."
    assert said in results_page(read_reports([folder]))
    (tmp_path / "evidence" / "tiny-fold-0").mkdir()
    (tmp_path / "evidence" / "tiny-fold-0" / "report.json").write_text(json.dumps(a_report))
    assert said not in results_page(read_reports(kept(tmp_path / "evidence")))


def test_the_commands(run: Run, tmp_path: Path) -> None:
    evidence, out = ["--evidence", str(tmp_path / "evidence")], tmp_path / "RESULTS.md"
    done = CliRunner().invoke(app, ["keep", str(run.folder), *evidence])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["results", *evidence, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "tiny-fold-1" in out.read_text()
    compared = CliRunner().invoke(app, ["compare", *[str(tmp_path / "evidence" / "tiny-fold-1")] * 5])
    assert compared.output.count("tiny-fold-1") == 5


def test_what_can_not_be_kept(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no report; judge it with 'leukoscope-train evaluate"):
        keep(tmp_path, tmp_path / "evidence")
    (tmp_path / "report.json").write_text('{"model": "tiny"}')
    with pytest.raises(RunError, match="is no run"):
        keep(tmp_path, tmp_path / "evidence")
    with pytest.raises(RunError, match="leukoscope-train keep RUN"):
        kept(tmp_path / "evidence")
