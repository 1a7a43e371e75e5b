"""The command's errors are one line that says what was expected; its help needs no PyTorch."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.cli import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["index", "/nowhere"], "/nowhere is no folder; expected a C-NMC download"),
        (["fit", "nowhere.toml"], "nowhere.toml: can't be read"),
        (["distil", "training/configs/efficientnet-b3.toml"], "distil: "),
        (["fit", "training/configs/efficientnet-b3.toml"], "fit: this key is missing"),
        (
            ["fit", "training/configs/efficientnet-lite0-fine-tuned.toml", "--set", "fit.epoch=3"],
            "fit.epoch: there is no such key",
        ),
        (["evaluate", "/nowhere"], "/nowhere is no run"),
        (["export", "/nowhere"], "/nowhere is no run"),
        (["fit", "training/configs/notebook-efficientnet-b3.toml", "--index", "/nowhere"], "leukoscope-train index"),
    ],
)
def test_errors(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ["--out", str(tmp_path / "run")] if "--index" in words else []
    monkeypatch.setattr(sys, "argv", ["leukoscope-train", *words, *out])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    stderr = capsys.readouterr().err
    assert expected in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_place_that_can_not_be_written_is_named_before_the_work(
    drawn_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "cells.parquet"
    monkeypatch.setattr(sys, "argv", ["leukoscope-train", "index", str(drawn_index.parent), "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    shown = capsys.readouterr()
    assert str(tmp_path / "file") in shown.err
    assert shown.err.count("\n") == 1
    assert "Reading" not in shown.out


def test_help_lists_the_commands_and_loads_no_torch() -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from training.cli import app;"
        "print(CliRunner().invoke(app, ['--help']).output, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout  # noqa: S603
    for command in ("index", "distil", "probe", "floor", "fit", "evaluate", "export", "sheet", "keep", "results"):
        assert command in shown
    assert shown.split()[-1] == "False"
