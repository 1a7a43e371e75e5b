"""Train a network as a configuration says: run(config) makes a run's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from training.module import CellModule
from training.run import CHECKPOINTS, Run
from training.trainer import prepare, run_trainer


@dataclass(frozen=True)
class FitResult:
    """What a fit built.

    Attributes:
        run: Its folder, with the best epoch's weights.
        trainer: Lightning's, after the fit.
        module: With the last epoch's weights.
        best_loss: Validation cross-entropy of the best epoch, whose weights are kept. It scores the
            probabilities that will be answered, where the AUROC would score their order alone.
    """

    run: Run
    trainer: L.Trainer
    module: CellModule
    best_loss: float


def fit(config: RunConfig, index: Path, folder: Path, *, progress: bool = True) -> FitResult:
    """Train, or resume where the folder's last checkpoint stands.

    Args:
        config: The run's configuration.
        index: Made by ``leukoscope-train index``.
        folder: The run's folder.
        progress: Whether to show a progress bar.

    Raises:
        TrainingError: The data, the start weights or the folder are wrong, or the loss is no number.
    """
    run, data, network = prepare(config, index, folder)
    module = CellModule(network, config)
    checkpoint = ModelCheckpoint(
        dirpath=folder / CHECKPOINTS, filename="best", monitor="val_loss", mode="min", save_last=True
    )
    trainer = run_trainer(
        run,
        module,
        CellData(data, batch_size=config.fit.batch_size, seed=config.seed, balanced=config.fit.balance == "subject"),
        callbacks=[checkpoint, *_callbacks(config)],
        progress=progress,
        accelerator=config.fit.accelerator,
        precision=config.fit.precision,
        max_epochs=config.fit.epochs,
        gradient_clip_val=config.optimiser.clip_norm,
    )
    run.save_weights(_network_state(Path(checkpoint.best_model_path)))
    return FitResult(run, trainer, module, float(checkpoint.best_model_score or "nan"))


def _callbacks(config: RunConfig) -> list[Callback]:
    callbacks: list[Callback] = [
        EarlyStopping("val_loss", mode="min", patience=config.fit.patience),
        LearningRateMonitor("epoch"),
    ]
    if config.optimiser.average_decay:
        callbacks.append(EMAWeightAveraging(decay=config.optimiser.average_decay))
    return callbacks


def _network_state(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Take the network's weights (the averaged ones, where there are) out of a checkpoint."""
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "network."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
