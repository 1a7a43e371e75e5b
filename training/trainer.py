"""A run as both kinds of training start it, and Lightning's trainer: quiet, logged to CSV, resumed."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from training.config import DataConfig
from training.data.dataset import Data
from training.run import Run, network_of
from training.zoo import Classifier
from training.zoo.start import apply_start


def prepare(config: DataConfig, index: Path, folder: Path) -> tuple[Run, Data, Classifier]:
    """Make or reopen a run's folder, read its data, and build its network with the start weights.

    Args:
        config: The run's configuration.
        index: Made by ``leukoscope-train index``.
        folder: The run's folder.

    Returns:
        The run, its data, and its network in the memory format that convolutions are fastest in.

    Raises:
        TrainingError: The data, the start weights or the folder are wrong.
    """
    run = Run(folder)
    data = Data.load(index, config, run.cache())
    run.start(config, index)
    L.seed_everything(config.seed, workers=True, verbose=False)
    network = network_of(config)
    apply_start(network, config.model.start, config.seed)
    return run, data, network.to(memory_format=torch.channels_last)


def run_trainer(
    run: Run,
    module: L.LightningModule,
    batches: L.LightningDataModule,
    *,
    callbacks: Sequence[Callback],
    progress: bool,
    **settings: Any,
) -> L.Trainer:
    """Train a module to its end, from the run's last checkpoint if it has one.

    Args:
        run: Whose folder takes logs and checkpoints.
        module: To train.
        batches: To train on.
        callbacks: Beside the progress bar; one of them must write the last checkpoint.
        progress: Whether to show a progress bar.
        **settings: For `lightning.Trainer`.

    Returns:
        The trainer, after the fit.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # The arrays are in memory: worker processes would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # A resumed run writes beside its earlier checkpoints and logs: that is meant.
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        # Lightning's own use of what PyTorch has deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        trainer = L.Trainer(
            devices=1,
            logger=CSVLogger(run.folder, name="logs", version="", flush_logs_every_n_steps=10),
            callbacks=[*callbacks, *([RichProgressBar()] if progress else [])],
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            **settings,
        )
        trainer.fit(module, datamodule=batches, ckpt_path=run.last_checkpoint())
    return trainer
