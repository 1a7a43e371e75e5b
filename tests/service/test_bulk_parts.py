"""The parts of `leukoscope predict --ray` that need no Ray: options, the missing extra, and who gets which CPUs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.folder import cluster
from app.folder.cluster import Workers, choose_workers
from app.folder.errors import UsageError
from app.settings import Settings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ray"], "--ray needs --out"),
        (["--ray", "--out", "r.csv", "--server", "http://127.0.0.1:1"], "--server and --ray exclude each other"),
        (["--ray", "--out", "r.csv", "--api-key-file", "k"], "--api-key-file and --ray exclude each other"),
        (["--ray", "--out", "r.csv", "--explain", "maps"], "--explain can't be had with --ray"),
        (["--out", "r.csv", "--workers", "2"], "--workers is for --ray"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["predict", str(tmp_path), *words])
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    result = CliRunner().invoke(cli, ["predict", str(tmp_path), "--ray", "--out", str(tmp_path / "r.csv")])
    assert result.exit_code == 2
    assert "--ray needs Ray, but ray is not installed: pip install 'leukoscope[ray]'" in result.stderr


CPU_NODES = [{"CPU": 8.0}, {"CPU": 4.0}, {"memory": 1.0}]
GPU_NODES = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}, {"CPU": 6.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        (CPU_NODES, {}, Workers(3, 4, 0)),
        (CPU_NODES, {"inference_threads": 2}, Workers(6, 2, 0)),
        (CPU_NODES, {"inference_threads": 8}, Workers(1, 8, 0)),
        (GPU_NODES, {}, Workers(5, 4, 1)),
        (GPU_NODES, {"device": "cuda", "decode_threads": 3}, Workers(5, 3, 1)),
        (GPU_NODES, {"device": "cpu"}, Workers(4, 6, 0)),
    ],
)
def test_workers_fill_the_cluster(nodes: list[dict[str, float]], settings: dict[str, Any], expected: Workers) -> None:
    assert choose_workers(Settings(**settings), nodes) == expected


@pytest.mark.parametrize(
    ("nodes", "settings", "message"),
    [
        (CPU_NODES, {"device": "cuda"}, "no node of the cluster has a GPU"),
        (CPU_NODES, {"inference_threads": 9}, "no node of the cluster has the 9 CPUs"),
        ([], {}, "no node of the cluster has the 1 CPUs"),
    ],
)
def test_a_cluster_without_room(nodes: list[dict[str, float]], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_workers(Settings(**settings), nodes)
