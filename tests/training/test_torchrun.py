"""`leukoscope-train fit` under torchrun: two processes learn what one learns, and one that is killed costs nothing."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore  # type: ignore[attr-defined]

from tests.training.conftest import run_config, write_toml
from training.config import RunConfig
from training.errors import ConfigError, RunError
from training.meeting import meet
from training.processes import _of_torchrun
from training.ray_job import resources

# They start fresh interpreters, which a busy machine makes wait.
pytestmark = pytest.mark.timeout(1300)
_PATIENCE_S = 600
EPOCHS = 6


def config(devices: int) -> RunConfig:
    """The same effective batch for each number of processes, and nothing that each draws for itself."""
    settings = {
        "epochs": EPOCHS,
        "batch_size": 4 // devices,
        "freeze_norm": True,
        "accelerator": "cpu",
        "devices": devices,
    }
    model = {"network": "efficientnet-lite0", "dropout": 0.0, "drop_path": 0.0}
    return run_config(model=model, augment={"flip": 0.0}, fit=settings)


def start(words: list[str], out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *words]
    # Two processes of many threads each would wait for one another.
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)  # noqa: S603 - our own


def fit_words(devices: int, index: Path, out: Path) -> list[str]:
    file = write_toml(config(devices), out.with_suffix(".toml"))
    return ["training.cli", "fit", str(file), "--index", str(index), "--out", str(out)]


def torchrun(index: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", *options, "-m"]
    return start([*launcher, *fit_words(2, index, out)], out)


def finished(process: subprocess.Popen[bytes], out: Path) -> Path:
    log = out.with_suffix(".log")
    try:
        status = process.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"not finished in {_PATIENCE_S} s\n{log.read_text()}")
    finally:
        process.terminate()  # torchrun ends its processes then
        process.wait()
    assert status == 0, log.read_text()
    return out


@pytest.fixture(scope="module")
def together(drawn_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that torchrun has started."""
    out = tmp_path_factory.mktemp("together") / "run"
    return finished(torchrun(drawn_index, out), out)


def curve(run: Path, figure: str) -> list[float]:
    figures = pl.read_csv(run / "logs" / "metrics.csv")
    return figures.filter(pl.col(figure).is_not_null()).sort("epoch")[figure].to_list()


def test_two_processes_have_the_loss_curve_of_one(together: Path, drawn_index: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    finished(start(fit_words(1, drawn_index, alone), alone), alone)
    for figure in ("train_loss", "val_loss"):
        expected = curve(alone, figure)
        assert len(set(expected)) == EPOCHS
        assert curve(together, figure) == pytest.approx(expected, rel=1e-3)
    assert "best validation loss" in together.with_suffix(".log").read_text()


def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost(
    together: Path, drawn_index: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = torchrun(drawn_index, out, "--max-restarts=1")
    deadline_s = time.monotonic() + _PATIENCE_S
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, out.with_suffix(".log").read_text()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    finished(process, out)
    assert "(exitcode: -9)" in out.with_suffix(".log").read_text()
    expected = load_file(together / "weights.safetensors")
    for name, tensor in load_file(out / "weights.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.fixture
def kept_by_torchrun() -> Iterator[dict[str, str]]:
    """The environment that torchrun gives the processes of every attempt, with the store that it keeps."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
    }
    del store


def attempt(variables: dict[str, str], late: int) -> list[str]:
    """Two processes meet and connect, one of them later than the other; return the ports of their stores."""
    ports: dict[int, str] = {}

    def work(rank: int) -> None:
        mine = variables | {"RANK": str(rank)}
        time.sleep(0.3 if rank == late else 0)
        store = meet(mine)
        assert store is not None
        group: Any = ProcessGroupGloo(PrefixStore("group", store), rank, 2, timedelta(seconds=20))
        total = torch.ones(1)
        group.allreduce([total]).wait()
        assert total.item() == 2
        ports[rank] = mine["MASTER_PORT"]
        met.wait()

    met = threading.Barrier(2, timeout=30)
    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return [ports[rank] for rank in range(2)]


def test_an_attempt_never_meets_the_one_before(kept_by_torchrun: dict[str, str]) -> None:
    seen = set()
    for late in (0, 1, 1, 0, 1):
        first, second = attempt(kept_by_torchrun, late)
        assert first == second
        seen.add(first)
    assert kept_by_torchrun["MASTER_PORT"] not in seen


def test_a_process_that_never_comes_is_named(kept_by_torchrun: dict[str, str]) -> None:
    with pytest.raises(RunError, match=r"1 of 2 processes have not come in 0\.2 s"):
        meet(kept_by_torchrun | {"RANK": "0"}, patience_s=0.2)


def test_a_store_that_is_new_each_time_is_taken_as_it_is() -> None:
    assert meet({"TORCHELASTIC_USE_AGENT_STORE": "False"}) is None


def test_workers_of_ray_share_the_cluster() -> None:
    two = config(2)
    assert resources(two, [{"CPU": 8.0}]) == {"use_gpu": False, "resources_per_worker": {"CPU": 4}}
    assert resources(two, [{"CPU": 3.0}, {"CPU": 1.0}]) == {"use_gpu": False, "resources_per_worker": {"CPU": 1}}
    with pytest.raises(ConfigError, match=r"the cluster has 1 CPUs; fit\.devices wants 2"):
        resources(two, [{"CPU": 1.0}])
    on_gpus = two.model_copy(update={"fit": two.fit.model_copy(update={"accelerator": "auto"})})
    assert resources(on_gpus, [{"CPU": 8.0, "GPU": 1.0}] * 2) == {"use_gpu": True}
    with pytest.raises(ConfigError, match=r"the cluster has 1 GPUs; fit\.devices wants 2"):
        resources(on_gpus, [{"CPU": 8.0, "GPU": 1.0}])


def test_another_number_of_processes_than_the_configuration_has_is_an_error() -> None:
    variables = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(ConfigError, match=r"torchrun has started 4 processes, but fit\.devices is 1"):
        _of_torchrun(1, variables)
    assert _of_torchrun(4, variables).settings == {"devices": 2, "num_nodes": 2, "strategy": "ddp"}
    with pytest.raises(ConfigError, match="the same number on each machine"):
        _of_torchrun(3, {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"})
