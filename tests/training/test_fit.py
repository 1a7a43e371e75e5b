"""Losses, optimisers, the notebook's schedule, frozen backbones, several processes, and a killed run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from safetensors.torch import load_file
from torch.nn import functional

from app.core.spec import CARD_FILE
from tests.training.conftest import run_config, write_toml
from training.compare import read_reports, row
from training.config import LossConfig, OptimiserConfig
from training.data.datamodule import EpochSampler
from training.errors import DataError, RunError
from training.evaluate import evaluate
from training.export import export
from training.fit import end, fit
from training.history import History
from training.losses import balanced_class_weights, classification_loss
from training.module import CellModule, Scaled
from training.notebook import NotebookRule
from training.optimisers import build_optimiser, warmup_then_cosine
from training.progress import CellProgress
from training.run import Run
from training.trainer import loggers
from training.zoo import create

LOGITS = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.5, 0.0]])
TARGETS = torch.tensor([0, 0, 1])
LITE = {"network": "efficientnet-lite0"}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_pytorchs(smoothing: float, weighted: bool) -> None:
    weights = torch.tensor([0.5, 2.0]) if weighted else None
    loss = classification_loss(LOGITS, TARGETS, LossConfig(), smoothing=smoothing, weights=weights)
    if smoothing and weighted:  # PyTorch weighs the smoothed label's parts, not the cell
        assert loss.isfinite()
    else:
        expected = functional.cross_entropy(LOGITS, TARGETS, weight=weights, label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected)


def test_the_focal_loss_by_hand() -> None:
    loss = classification_loss(LOGITS[:1], TARGETS[:1], LossConfig(name="focal", gamma=2.0))
    right = 1 / (1 + np.exp(-2.0))
    assert float(loss) == pytest.approx(-((1 - right) ** 2) * np.log(right), rel=1e-4)
    plain = classification_loss(LOGITS, TARGETS, LossConfig(name="focal", gamma=0.0))
    torch.testing.assert_close(plain, functional.cross_entropy(LOGITS, TARGETS))


def test_the_symmetric_loss_by_hand() -> None:
    loss = classification_loss(LOGITS[:1], TARGETS[:1], LossConfig(name="symmetric", alpha=0.1, beta=1.0))
    right = 1 / (1 + np.exp(-2.0))
    assert float(loss) == pytest.approx(-0.1 * np.log(right) + 4 * (1 - right), rel=1e-5)


def test_balanced_classes_weigh_the_same() -> None:
    weights = balanced_class_weights(torch.tensor([0] * 6 + [1] * 2))
    assert float(weights[0] * 6) == pytest.approx(float(weights[1] * 2))
    assert float(weights[0] * 6 + weights[1] * 2) == pytest.approx(8)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("adamax", torch.optim.Adamax),
        ("sgd", torch.optim.SGD),
    ],
)
def test_optimisers(name: str, kind: type[torch.optim.Optimizer]) -> None:
    config = OptimiserConfig.model_validate({"name": name, "backbone_lr": 1e-3, "head_lr": 1e-2, "eps": 1e-7})
    network = create("efficientnet-lite0", 64)
    optimiser = build_optimiser(network, config)
    assert type(optimiser) is kind
    assert {group["lr"] for group in optimiser.param_groups} == {1e-3, 1e-2}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(network.parameters()))
    assert all(group.get("eps", 1e-7) == 1e-7 for group in optimiser.param_groups)
    assert all(group.get("fused") in {None, False} for group in optimiser.param_groups)  # gradients are clipped
    unclipped = build_optimiser(network, config.model_copy(update={"clip_norm": 0.0}))
    assert all(bool(group.get("fused")) == (name in {"adam", "adamw"}) for group in unclipped.param_groups)
    network.backbone.requires_grad_(requires_grad=False)
    assert {group["lr"] for group in build_optimiser(network, config).param_groups} == {1e-2}


def test_the_cosine_warms_up_and_ends_at_nothing() -> None:
    rates = [warmup_then_cosine(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_the_notebooks_rule_on_a_trace_worked_out_by_hand() -> None:
    # Training accuracy, validation loss, whether the epoch is better, falls in a row, whether it stops.
    trace = [
        (0.70, 2.00, True, 0, False),  # accuracy counts: up from 0
        (0.80, 2.50, True, 0, False),  # accuracy up; that the loss is larger does not count
        (0.79, 1.00, False, 1, False),  # accuracy down: halve, though the loss is smaller; 1.00 is remembered
        (0.85, 1.50, True, 0, False),  # accuracy up
        (0.91, 1.20, False, 1, False),  # from .9 on the loss counts, and 1.00 was smaller: halve
        (0.89, 0.50, False, 2, False),  # accuracy counts again, and .91 was higher: halve
        (0.95, 0.40, True, 0, False),  # a smaller loss
        (0.96, 0.45, False, 1, False),  # halve
        (0.97, 0.39, True, 0, False),  # a smaller loss
        (0.98, 0.39, False, 1, False),  # the same is not smaller: halve
        (0.99, 0.50, False, 2, False),  # halve
        (0.99, 0.51, False, 3, True),  # halve for the third time in vain, and stop
    ]
    rule = NotebookRule()
    for accuracy, loss, better, falls, stop in trace:
        assert (rule.improved(accuracy, loss), rule.falls, rule.stop) == (better, falls, stop), (accuracy, loss)


def notebook_config(epochs: int) -> Any:
    return run_config(
        model=LITE,
        optimiser={
            "name": "adamax", "backbone_lr": 1e-4, "head_lr": 1e-4, "eps": 1e-7, "weight_decay": 0,
            "schedule": "notebook", "clip_norm": 0, "average_decay": 0,
        },
        fit={"epochs": epochs, "batch_size": 4, "balance": "none", "patience": 0, "accelerator": "cpu"},
    )  # fmt: skip


def test_the_notebooks_schedule_halves_stops_and_keeps_the_best(
    drawn_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = iter([True, False, False, False])

    def improved(self: NotebookRule, accuracy: float, loss: float) -> bool:
        assert 0 <= accuracy <= 1
        assert loss > 0
        result = next(better)
        self.falls = 0 if result else self.falls + 1
        return result

    monkeypatch.setattr(NotebookRule, "improved", improved)
    result = fit(notebook_config(9), drawn_index, tmp_path / "run", progress=False)
    assert result.trainer.current_epoch == 4
    assert {group["lr"] for group in result.trainer.optimizers[0].param_groups} == {1e-4 / 8}
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    torch.testing.assert_close(kept["head.logits.weight"], best["state_dict"]["network.head.logits.weight"])
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert {"best_accuracy": 0.0, "best_loss": float("inf"), "falls": 3} in last["callbacks"].values()
    # Stopped early, it is finished: the same words do not go on.
    again = fit(notebook_config(9), drawn_index, tmp_path / "run", progress=False)
    assert again.trainer.current_epoch == 4


def frozen_config(**fit_changes: object) -> Any:
    return run_config(
        model=LITE | {"freeze": True},
        augment={"flip": 0.5},
        optimiser={"name": "adam", "backbone_lr": 1e-3, "head_lr": 1e-3, "weight_decay": 0, "schedule": "plateau"},
        loss={"class_weights": "balanced"},
        fit={"epochs": 3, "batch_size": 4, "accelerator": "cpu"} | fit_changes,
    )


def test_learning_from_pooled_features_is_the_same_as_from_pictures(drawn_index: Path, tmp_path: Path) -> None:
    pooled = fit(frozen_config(), drawn_index, tmp_path / "pooled", progress=False)
    plain = fit(frozen_config(), drawn_index, tmp_path / "plain", progress=False, pool_frozen=False)
    assert list(tmp_path.glob("cache/pooled-*-4.npy"))
    assert pooled.best_loss == pytest.approx(plain.best_loss, rel=1e-4)
    first, second = (load_file(tmp_path / run / "weights.safetensors") for run in ("pooled", "plain"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4, msg=name)
    fresh = create("efficientnet-lite0", 40)
    torch.manual_seed(0)
    assert not torch.equal(first["head.dense.weight"], fresh.head.state_dict()["dense.weight"])


def test_a_frozen_backbone_stays_as_it_started(drawn_index: Path, tmp_path: Path) -> None:
    config = frozen_config(keep="last", epochs=1)
    whole = fit(
        config.model_copy(update={"augment": run_config().augment}), drawn_index, tmp_path / "run", progress=False
    )
    before = CellModule(create("efficientnet-lite0", 40), config).network.state_dict()
    after = load_file(whole.run.folder / "weights.safetensors")
    assert not list(tmp_path.glob("cache/pooled-*"))
    running = "backbone.blocks.3.0.bn1.running_var"
    assert torch.equal(after[running], before[running])


def test_validation_figures_are_those_of_float32_whatever_the_training_computes_in(
    drawn_index: Path, tmp_path: Path
) -> None:
    narrow = {"epochs": 1, "batch_size": 4, "accelerator": "cpu", "precision": "bf16-mixed", "keep": "last"}
    steady = {"backbone_lr": 1e-4, "head_lr": 1e-3, "average_decay": 0}
    result = fit(run_config(fit=narrow, optimiser=steady, model=LITE), drawn_index, tmp_path / "run", progress=False)
    network, data = result.run.load_network(), result.run.load_data()
    rows = data.split.validation
    module = Scaled(network, result.run.config().input.spec()).eval()
    with torch.inference_mode():
        logits = module(torch.from_numpy(np.array(data.inputs[rows])))
    loss = functional.cross_entropy(logits, torch.from_numpy(data.targets[rows]))
    assert float(result.trainer.callback_metrics["val_loss"]) == pytest.approx(float(loss), abs=1e-5)


def test_more_cells_a_step_than_there_are_is_an_error(drawn_index: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="64 a step"):
        fit(run_config(fit={"epochs": 1, "batch_size": 64}), drawn_index, tmp_path / "run", progress=False)


def test_processes_share_an_epoch_out() -> None:
    parts = [list(EpochSampler(11, 3, None, rank, 2)) for rank in range(2)]
    assert [len(part) for part in parts] == [5, 5]
    assert len({*parts[0], *parts[1]}) == 10


def test_logs_go_to_csv_tensorboard_and_where_it_is_installed_mlflow(tmp_path: Path) -> None:
    kinds = [type(logger) for logger in loggers(Run(tmp_path), mlflow=False)]
    assert kinds == [History, TensorBoardLogger]
    if find_spec("mlflow"):
        assert type(loggers(Run(tmp_path), mlflow=True)[-1]) is MLFlowLogger
    else:
        with pytest.raises(ModuleNotFoundError, match="mlflow"):
            loggers(Run(tmp_path), mlflow=True)


def test_progress_shows_speed_time_left_and_each_epoch_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    trainer: Any = SimpleNamespace(estimated_stepping_batches=100, global_step=0, current_epoch=0, max_epochs=2)
    trainer.callback_metrics = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_auroc"), 0.5)
    bar, module = CellProgress(40), torch.nn.Module()
    bar.on_train_start(trainer, cast("CellModule", module))
    for step in range(1, 51):
        trainer.global_step = step
        bar.on_train_batch_end(trainer)
    bar.on_train_epoch_end(trainer, cast("CellModule", module))
    bar.teardown(trainer, cast("CellModule", module), "fit")
    epoch, *_, last = capsys.readouterr().out.splitlines()
    assert epoch == "Epoch 1/2: loss 0.5000, accuracy 0.5000, validation loss 0.5000, validation AUROC 0.5000"
    assert re.search(r"^Epoch 1/2 .* 50 % \d+ images/s \d+:\d\d", last)


def start_fit(config: Path, index: Path, out: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "training.cli", "fit", str(config), "--index", str(index), "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("wb") as log:
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603 - our own command


@pytest.mark.timeout(900)  # starts fresh interpreters, which a busy machine makes wait
def test_two_processes_train_one_network(drawn_index: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "batch_size": 2, "accelerator": "cpu", "devices": 2}
    config = write_toml(run_config(model=LITE, fit=settings), tmp_path / "tiny.toml")
    run = tmp_path / "run"
    status = start_fit(config, drawn_index, run).wait(timeout=800)
    assert status == 0, (tmp_path / "run.log").read_text()
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    # Half the steps that one process would take.
    assert kept["global_step"] == 2
    assert load_file(run / "weights.safetensors")
    assert json.loads((run / "config.json").read_text())["config"]["fit"]["devices"] == 2


@pytest.mark.timeout(900)  # starts fresh interpreters, which a busy machine makes wait
def test_a_run_killed_in_mid_epoch_goes_on_to_the_same_weights(drawn_index: Path, tmp_path: Path) -> None:
    settings = {"epochs": 3, "batch_size": 2, "freeze_norm": False, "accelerator": "cpu"}
    config = run_config(model=LITE, fit=settings)
    file = write_toml(config, tmp_path / "tiny.toml")
    killed = start_fit(file, drawn_index, tmp_path / "killed")
    first = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 600
    while not first.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert first.exists(), (tmp_path / "killed.log").read_text()
    resumed = fit(config, drawn_index, tmp_path / "killed", progress=False).run
    whole = fit(config, drawn_index, tmp_path / "whole", progress=False).run
    expected, actual = (load_file(run.folder / "weights.safetensors") for run in (whole, resumed))
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0, msg=name)
    # Also of the epochs before the kill; and a finished run that is started again keeps all of it.
    assert history(resumed) == history(whole)
    assert len(history(whole)) == settings["epochs"]
    fit(config, drawn_index, tmp_path / "whole", progress=False)
    assert history(resumed) == history(whole)


def test_a_run_ended_by_hand_says_so_wherever_it_is_judged_and_can_go_on(
    drawn_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 3, "batch_size": 2, "accelerator": "cpu", "keep": "last"}
    config = run_config(model=LITE, fit=settings)
    whole = fit(config, drawn_index, tmp_path / "whole", progress=False).run
    cut = Run(tmp_path / "cut")
    with monkeypatch.context() as patched:
        patched.setattr(CellModule, "training_step", cut_in_epoch(2))
        with pytest.raises(CutOffError):
            fit(config, drawn_index, cut.folder, progress=False)
    with pytest.raises(RunError, match="leukoscope-train end"):
        evaluate(cut, pictures=2)

    assert end(cut) == (2, 3)
    report = evaluate(cut, pictures=2)
    assert (report["epochs"], report["planned_epochs"]) == (2, 3)
    words = "ended by hand after 2 of 3 epochs"
    assert words in (cut.folder / "report.html").read_text()
    assert words in (export(cut, tmp_path / "models", "1.0.0") / CARD_FILE).read_text()
    assert row(*read_reports([cut.folder]))[-1] == "2 of 3"

    fit(config, drawn_index, cut.folder, progress=False)
    expected, actual = (load_file(run.folder / "weights.safetensors") for run in (whole, cut))
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0, msg=name)
    report = evaluate(cut, pictures=2)
    assert (report["epochs"], report["planned_epochs"]) == (3, None)
    assert "ended by hand" not in (cut.folder / "report.html").read_text()


def test_what_can_not_be_ended_is_named(drawn_index: Path, tmp_path: Path) -> None:
    config = run_config(model=LITE, fit={"epochs": 1, "batch_size": 4, "accelerator": "cpu"})
    run = fit(config, drawn_index, tmp_path / "run", progress=False).run
    with pytest.raises(RunError, match="is at its own end"):
        end(run)
    run.last_checkpoint().unlink()  # type: ignore[union-attr]
    with pytest.raises(RunError, match="has no checkpoint"):
        end(run)
    with pytest.raises(RunError, match="is no run"):
        end(Run(tmp_path))


@pytest.mark.parametrize("left", [0, 1000])
def test_damaged_files_of_a_run_are_named(left: int, drawn_index: Path, tmp_path: Path) -> None:
    config = run_config(model=LITE, fit={"epochs": 1, "batch_size": 4, "accelerator": "cpu"})
    run = fit(config, drawn_index, tmp_path, progress=False).run
    for file in (run.folder / "weights.safetensors", run.folder / "checkpoints" / "last.ckpt"):
        file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(RunError, match=r"weights\.safetensors is damaged"):
        run.load_network()
    with pytest.raises(RunError, match=r"last\.ckpt is damaged; remove it"):
        fit(config, drawn_index, tmp_path, progress=False)


class CutOffError(Exception):
    """What a run is interrupted by."""


def cut_in_epoch(epoch: int) -> Any:
    step = CellModule.training_step

    def cut_off(module: CellModule, batch: Any, number: int) -> torch.Tensor:
        if module.current_epoch == epoch and number:
            raise CutOffError
        return step(module, batch, number)

    return cut_off


def history(run: Run) -> list[tuple[float, ...]]:
    rows = pl.read_csv(run.folder / "logs" / "metrics.csv").filter(pl.col("val_loss").is_not_null())
    return rows.select("epoch", "step", "val_loss").rows()
