"""Teach a grown network the features of its relative while its activations become its own.

A grown EfficientNet-B3 with ReLU6 computes exactly what its Lite relative does; with SiLU it does
not. Here the activations go over slowly, and after each stage the network's features are held to
those that it had before (after FitNets, Romero et al. 2015, arXiv:1412.6550). No labels are used,
and batch-norm statistics stay: re-estimated on cells, they would change every feature at once.
"""

import copy
from pathlib import Path
from typing import Final

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from training.config import FeatureRunConfig
from training.data.augment import Augment
from training.data.datamodule import Batch, CellData
from training.gradients import QuickGradients
from training.module import Normalise, step_seed
from training.optimisers import warmup_then_cosine
from training.run import CHECKPOINTS
from training.tables import AugmentConfig
from training.trainer import hushed, prepare, run_trainer
from training.zoo import Classifier
from training.zoo.activations import set_activation_progress
from training.zoo.efficientnet import stage_features

_WARMUP_STEPS: Final = 20
_CLIP_NORM: Final = 10.0
_VALIDATION_BATCHES: Final = 8


class FeatureModule(L.LightningModule):
    """Holds a network's features, stage by stage, to those of its ReLU6 self.

    Args:
        network: Freshly grown.
        config: The run's configuration.
    """

    def __init__(self, network: Classifier, config: FeatureRunConfig) -> None:
        super().__init__()
        self.network = network
        self._config = config
        self._teacher = copy.deepcopy(network.backbone).requires_grad_(requires_grad=False)
        set_activation_progress(self._teacher, 0.0)
        self._augment = Augment(AugmentConfig(flip=0.5))
        self._normalise = Normalise(config.input.spec())

    def on_train_epoch_start(self) -> None:
        """Keep all batch-norm statistics."""
        self.network.eval()
        self._teacher.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Seed the step, and move the activations on."""
        torch.manual_seed(step_seed(self._config.seed, self.global_step))
        settings = self._config.distil
        set_activation_progress(self.network, min(1.0, self.global_step / (settings.morph * settings.steps)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002  Lightning's signature
        """Return the summed unexplained variance of all stages."""
        with QuickGradients():
            loss = self._unexplained(self._augment(self._crop(batch.images).permute(0, 3, 1, 2)))
        self.log("train_unexplained", loss.detach().mean(), prog_bar=True, batch_size=len(batch.images))
        return loss.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Measure on whole pictures, in float32 whatever the training's type."""
        with torch.autocast(batch.images.device.type, enabled=False):
            loss = self._unexplained(batch.images.permute(0, 3, 1, 2))
        self.log("val_unexplained", loss.mean(), prog_bar=True, batch_size=len(batch.images))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW without weight decay, warmed up, with a cosine to zero."""
        settings = self._config.distil
        optimiser = torch.optim.AdamW(self.network.backbone.parameters(), settings.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: warmup_then_cosine(step, settings.steps, _WARMUP_STEPS)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _unexplained(self, images: Tensor) -> Tensor:
        """Unexplained variance after each stage, shape ``(stages,)``, for pictures in 0..255."""
        images = self._normalise(images).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = stage_features(self._teacher, images)
        actual = stage_features(self.network.backbone, images)
        return torch.stack([unexplained_variance(a.float(), w.float()) for a, w in zip(actual, wanted, strict=True)])

    def _crop(self, images: Tensor) -> Tensor:
        side = self._config.distil.crop_px
        top, left = (int(torch.randint(images.shape[1] - side + 1, ())) for _ in range(2))
        return images[:, top : top + side, left : left + side]


def unexplained_variance(actual: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over variance, by channel, averaged.

    Args:
        actual: Feature map, shape ``(batch, channels, height, width)``.
        wanted: Same shape.

    Returns:
        A scalar: 0 where both are equal, 1 where `actual` is the mean of `wanted`.
    """
    variance = wanted.var(dim=(0, 2, 3))
    # Channels that hardly vary on cells would otherwise outweigh all others.
    floor = 1e-2 * variance.mean() + torch.finfo(variance.dtype).tiny
    return ((actual - wanted).square().mean(dim=(0, 2, 3)) / (variance + floor)).mean()


def distil(config: FeatureRunConfig, index: Path, folder: Path, *, progress: bool = True) -> float:
    """Teach features on the training part of a split, or resume where the last checkpoint stands.

    Args:
        config: The run's configuration.
        index: Made by ``leukoscope-train index``.
        folder: The run's folder; its ``weights.safetensors`` can start a classifier's run.
        progress: Whether to show a progress bar.

    Returns:
        The unexplained share of the features' variance on validation cells, averaged over the stages.

    Raises:
        TrainingError: The data, the start weights or the folder are wrong.
    """
    run, data, network = prepare(config, index, folder)
    module = FeatureModule(network, config)
    settings = config.distil
    batches = CellData(data, batch_size=settings.batch_size, seed=config.seed)
    trainer = run_trainer(
        run,
        module,
        batches,
        callbacks=[ModelCheckpoint(dirpath=folder / CHECKPOINTS, save_last=True, save_on_train_epoch_end=True)],
        progress=progress,
        batch_size=settings.batch_size,
        accelerator=settings.accelerator,
        precision=settings.precision,
        max_steps=settings.steps,
        gradient_clip_val=_CLIP_NORM,
        limit_val_batches=_VALIDATION_BATCHES,
    )
    run.save_weights(module.network.backbone.state_dict())
    # The last steps may be less than an epoch, and a finished run that is started again takes none.
    with hushed():
        (measured,) = trainer.validate(module, datamodule=batches, verbose=False)
    return float(measured["val_unexplained"])
