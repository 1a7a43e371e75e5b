"""Train a network as a configuration says: run(config) makes a run's folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
)

from training.config import RunConfig
from training.data.datamodule import CellData
from training.data.dataset import Data
from training.errors import DataError, RunError
from training.frozen import can_be_pooled, pooled_features
from training.losses import balanced_class_weights
from training.module import CellModule
from training.notebook import NotebookSchedule
from training.processes import Processes
from training.run import CHECKPOINTS, Run, read_checkpoint
from training.trainer import prepare, run_trainer

_BEST: Final = "best"
_LEAST: Final = "least-loss"
_LAST: Final = "last"


@dataclass(frozen=True)
class FitResult:
    """What a fit built.

    Attributes:
        run: Its folder, with the weights that the configuration keeps.
        trainer: Lightning's, after the fit.
        module: With the last epoch's weights.
        best_loss: Smallest validation cross-entropy of an epoch. Unless the configuration says
            otherwise, that epoch's weights are kept: it scores the probabilities that will be
            answered, where the AUROC would score their order alone.
    """

    run: Run
    trainer: L.Trainer
    module: CellModule
    best_loss: float


def fit(
    config: RunConfig,
    index: Path,
    folder: Path,
    *,
    progress: bool = True,
    pool_frozen: bool = True,
    together: Processes | None = None,
) -> FitResult:
    """Train, or resume where the folder's last checkpoint stands.

    Args:
        config: The run's configuration.
        index: Made by ``leukoscope-train index``.
        folder: The run's folder.
        progress: Whether to show a progress bar.
        pool_frozen: Whether a frozen backbone's features are computed once, where that is the same.
        together: How this process trains with others; None for `training.processes` to find out.

    Raises:
        TrainingError: The data, the start weights or the folder are wrong, or the loss is no number.
    """
    run, data, network = prepare(config, index, folder)
    _check_size(data, config)
    run.go_on()
    pooled = pool_frozen and can_be_pooled(config, network)
    if pooled:
        data = dataclasses.replace(data, inputs=pooled_features(network, config, data, run.cache()))
    module = CellModule(network, config, class_weights=_class_weights(data, config), pooled=pooled)
    least, last = _checkpoints(config, folder / CHECKPOINTS)
    trainer = run_trainer(
        run,
        module,
        CellData(data, batch_size=config.fit.batch_size, seed=config.seed, balanced=config.fit.balance == "subject"),
        batch_size=config.fit.batch_size,
        callbacks=[*_callbacks(config, folder / CHECKPOINTS), least, last],
        progress=progress,
        accelerator=config.fit.accelerator,
        devices=config.fit.devices,
        together=together,
        precision=config.fit.precision,
        max_epochs=_epochs(run, config),
        gradient_clip_val=config.optimiser.clip_norm or None,
    )
    if trainer.is_global_zero:
        run.save_weights(_network_state(_kept(run, config)))
    return FitResult(run, trainer, module, float(least.best_model_score or "nan"))


def end(run: Run) -> tuple[int, int]:
    """End a run where its last checkpoint stands: the weights that it has by then can be judged.

    What is judged says so. `fit` goes on with the run as if it had not been ended.

    Args:
        run: An interrupted one.

    Returns:
        Epochs that it was fitted for, and how many the configuration wants.

    Raises:
        RunError: The run has no whole epoch, is at its own end, or is of another kind.
    """
    config = run.config()
    if not isinstance(config, RunConfig):
        raise RunError(f"{run.folder} has no epochs: its last layer is solved; make it with 'leukoscope-train probe'")
    last = run.last_checkpoint()
    if last is None:
        raise RunError(f"{run.folder} has no checkpoint: one is written at the end of each epoch")
    if run.is_finished and run.ended_after is None:
        raise RunError(f"{run.folder} is at its own end; there is nothing to end")
    epochs = _fitted(last)
    run.end(_network_state(_kept(run, config)), epochs)
    return epochs, config.fit.epochs


def _epochs(run: Run, config: RunConfig) -> int:
    """How many epochs to train in all: a finished run, which may have stopped early, does not go on."""
    last = run.last_checkpoint()
    if last is None or not run.is_finished:
        return config.fit.epochs
    return _fitted(last)


def _fitted(checkpoint: Path) -> int:
    return int(read_checkpoint(checkpoint)["epoch"]) + 1


def _kept(run: Run, config: RunConfig) -> Path:
    """The checkpoint whose weights are the run's."""
    return run.folder / CHECKPOINTS / f"{_BEST if config.fit.keep == 'best' else _LAST}.ckpt"


def _check_size(data: Data, config: RunConfig) -> None:
    cells, step = len(data.split.train), config.fit.batch_size * config.fit.devices
    if cells < step:
        raise DataError(f"the training part has {cells} cells; fit.batch_size and fit.devices want {step} a step")


def _class_weights(data: Data, config: RunConfig) -> torch.Tensor | None:
    if config.loss.class_weights == "none":
        return None
    return balanced_class_weights(torch.from_numpy(data.targets[data.split.train]))


def _checkpoints(config: RunConfig, folder: Path) -> tuple[ModelCheckpoint, ModelCheckpoint]:
    """Return the callbacks that write the checkpoint of the least loss, and that of the last epoch.

    The notebook's schedule has its own notion of the best epoch, and writes it itself.
    """
    own = config.optimiser.schedule == "notebook"
    # At the very end of an epoch: what is resumed has seen the whole of it.
    common: dict[str, Any] = {"dirpath": folder, "save_on_train_epoch_end": True, "enable_version_counter": False}
    least = ModelCheckpoint(filename=_LEAST if own else _BEST, monitor="val_loss", mode="min", **common)
    return least, ModelCheckpoint(filename=_LAST, **common)


def _callbacks(config: RunConfig, folder: Path) -> list[Callback]:
    callbacks: list[Callback] = [LearningRateMonitor("epoch")]
    if config.fit.patience:
        callbacks.append(EarlyStopping("val_loss", mode="min", patience=config.fit.patience))
    if config.optimiser.average_decay:
        callbacks.append(EMAWeightAveraging(decay=config.optimiser.average_decay))
    if config.optimiser.schedule == "notebook":
        callbacks.append(NotebookSchedule(config.optimiser.factor, folder / f"{_BEST}.ckpt"))
    return callbacks


def _network_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Take the network's weights (the averaged ones, where there are) out of a checkpoint."""
    state: dict[str, Any] = read_checkpoint(checkpoint)["state_dict"]
    prefix = "network."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
