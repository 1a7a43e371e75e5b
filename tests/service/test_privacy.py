"""Nothing leaves the machine: ONNX Runtime's telemetry is off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import NAME, VERSION
from tests.service.harness import ROOT

OPEN_SESSION = "import onnxruntime; onnxruntime.InferenceSession({path!r}, providers=['CPUExecutionProvider'])"


def files_left(first: str, models_dir: Path, home: Path) -> list[str]:
    """Files that a session leaves in an empty home: telemetry keeps an identifier and a database there."""
    home.mkdir()
    path = str(models_dir / NAME / VERSION / "model.onnx")
    # Telemetry is off in CI of itself.
    unset = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": str(home)}
    script = f"{first}; {OPEN_SESSION.format(path=path)}"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=60)  # noqa: S603
    # Matplotlib, which torchmetrics imports, keeps a list of the fonts.
    return [file.name for file in home.rglob("*") if file.is_file() and not file.name.startswith("fontlist-")]


@pytest.mark.parametrize(
    "first", ["import app.inference.session", "import app.main", "import training.parity", "import tests.models"]
)
def test_a_session_leaves_nothing_behind(first: str, models_dir: Path, tmp_path: Path) -> None:
    assert files_left(first, models_dir, tmp_path / "home") == []
