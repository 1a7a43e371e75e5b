"""What area and colours alone tell: measured as said, and judged with the configuration of any run."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.training.conftest import run_config, write_toml
from training.cli import app
from training.floor import area_and_colours


def test_area_and_colours_are_those_of_the_cell_alone() -> None:
    picture = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    picture[0, 0, :2] = [[100, 50, 20], [200, 70, 20]]
    picture[0, 3, 3] = 12  # still black
    assert area_and_colours(picture)[0] == pytest.approx([2 / 16, 150, 60, 20, 50, 10, 0])
    assert not area_and_colours(np.zeros((1, 4, 4, 3), dtype=np.uint8))[:, 1:].any()


def test_the_floor_takes_the_configuration_of_any_run(drawn_index: Path, tmp_path: Path) -> None:
    file = write_toml(run_config(), tmp_path / "tiny.toml")
    out = tmp_path / "floor"
    done = CliRunner().invoke(app, ["floor", str(file), "--index", str(drawn_index), "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())
    assert report["model"] == "floor"
    assert report["input"]["size_px"] == 40
    assert report["test"]["cells"] == sum(part["cells"] for part in report["split"]["parts"]["test"].values())
