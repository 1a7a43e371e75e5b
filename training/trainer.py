"""Lightning's trainer as this project runs it: quiet, logged to CSV, resumed from the last checkpoint."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from training.run import Run


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
