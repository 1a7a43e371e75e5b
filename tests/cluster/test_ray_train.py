"""`leukoscope-train fit --ray`: two workers, one of them killed on the way, learn what one process learns."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.processes import worker_of
from tests.training.conftest import drawn_index
from tests.training.test_torchrun import EPOCHS, curve, finished, fit_words, start

__all__ = ["drawn_index"]  # a fixture
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif("TEST_CLUSTER" not in os.environ, reason="runs by `make test-cluster`"),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="the extra 'ray' is not installed: make setup-ray"
    ),
]


def test_two_workers_end_where_one_process_ends(drawn_index: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    finished(start(fit_words(1, drawn_index, alone), alone), alone)
    process = start([*fit_words(2, drawn_index, together), "--ray"], together)
    deadline_s = time.monotonic() + 600
    while not (together / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, together.with_suffix(".log").read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(worker_of(process.pid, "ray::RayTrainWorker"), signal.SIGKILL)
    finished(process, together)
    # The history goes on where it was cut: each epoch once, as if nobody had been killed.
    for figure in ("train_loss", "val_loss"):
        expected = curve(alone, figure)
        assert len(expected) == EPOCHS
        assert curve(together, figure) == pytest.approx(expected, rel=1e-3)
    assert (together / "weights.safetensors").exists()
