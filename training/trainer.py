"""A run as both kinds of training start it, and Lightning's trainer: logged, resumed, safe against a kill."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from training.config import DataConfig
from training.data.dataset import Data
from training.descent import check_start
from training.history import History
from training.processes import Processes, processes
from training.progress import CellProgress
from training.run import HISTORY_FILE, Run, network_of
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
        TrainingError: The data, the start weights or the folder are wrong, or the start weights have learnt from
            subjects of the test part.
    """
    run = Run(folder)
    data = Data.load(index, config, run.cache())
    check_start(config, data)
    run.start(config, index, data.split.sha256(data.cells))
    L.seed_everything(config.seed, workers=True, verbose=False)
    network = network_of(config)
    apply_start(network, config.model.start, config.seed)
    return run, data, network.to(memory_format=torch.channels_last)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and then in its place: a kill leaves the old one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint, whole or not at all."""
        part = Path(f"{path}.part")
        super().save_checkpoint(checkpoint, part, storage_options)
        part.replace(path)


def run_trainer(
    run: Run,
    module: L.LightningModule,
    batches: L.LightningDataModule,
    *,
    batch_size: int,
    callbacks: Sequence[Callback],
    progress: bool,
    devices: int = 1,
    together: Processes | None = None,
    **settings: Any,
) -> L.Trainer:
    """Train a module to its end, from the run's last checkpoint if it has one.

    Args:
        run: Whose folder takes logs and checkpoints.
        module: To train.
        batches: To train on.
        batch_size: Of each process.
        callbacks: Beside the progress bar; one of them must write the last checkpoint.
        progress: Whether to show a progress bar.
        devices: GPUs, or processes on the CPU, over all machines.
        together: How this process trains with others; None for `training.processes` to find out.
        **settings: For `lightning.Trainer`.

    Returns:
        The trainer, after the fit.

    Raises:
        ConfigError: Another number of processes was started.
    """
    together = together or processes(devices)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with hushed():
        trainer = L.Trainer(
            # The data module deals the cells out to the processes.
            use_distributed_sampler=False,
            logger=loggers(run, mlflow=find_spec("mlflow") is not None),
            callbacks=[*callbacks, *([CellProgress(batch_size * devices)] if progress else [])],
            plugins=[WholeCheckpoints(), *together.plugins],
            enable_progress_bar=progress,
            enable_model_summary=False,
            # All batches have one size: cuDNN may look for its fastest algorithms.
            benchmark=True,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            **together.settings,
            **settings,
        )
        trainer.fit(module, datamodule=batches, ckpt_path=run.last_checkpoint())
    return trainer


def loggers(run: Run, *, mlflow: bool) -> list[Logger]:
    """Return where figures are logged: CSV and TensorBoard in the run's folder, and MLflow.

    Args:
        run: The run.
        mlflow: Whether to log to MLflow: where ``MLFLOW_TRACKING_URI`` says, or in the run's folder.
    """
    found: list[Logger] = [
        History(run.folder / HISTORY_FILE, run.last_checkpoint()),
        TensorBoardLogger(run.folder, name="logs", version="tensorboard"),
    ]
    if mlflow:
        found.append(MLFlowLogger(experiment_name="leukoscope", run_name=run.folder.name, save_dir=str(run.folder)))
    return found


@contextmanager
def hushed() -> Iterator[None]:
    """Silence Lightning's warnings of what is meant, or is its own business."""
    with warnings.catch_warnings():
        # The arrays are in memory: worker processes would only copy them.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # A resumed run writes beside its earlier checkpoints and logs: that is meant.
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
        # Lightning's own use of what PyTorch has deprecated.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        yield
