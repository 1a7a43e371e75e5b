"""The LightningModule: one network, its loss, its optimiser and its validation figures."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score

from app.core.spec import Preprocessing
from training.config import RunConfig
from training.data.augment import Augment
from training.data.datamodule import Batch
from training.data.labels import ALL, LABELS
from training.errors import RunError
from training.zoo import Classifier


class Normalise(nn.Module):
    """From the service's input to the network's: channels first, minus mean, by deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Scale pictures of shape ``(batch, 3, size, size)``, 0..255."""
        return (images.float() - self.mean) / self.std


class CellModule(L.LightningModule):
    """Trains an injected network.

    Args:
        network: Of `training.zoo`.
        config: The run's configuration.
    """

    def __init__(self, network: Classifier, config: RunConfig) -> None:
        super().__init__()
        self.network = network
        self._config = config
        self._augment = Augment(config.augment)
        self._normalise = Normalise(config.input.spec())
        self._auroc = BinaryAUROC()
        self._f1 = MulticlassF1Score(num_classes=len(LABELS), average="weighted")

    def on_train_epoch_start(self) -> None:
        """Keep the backbone's batch-norm statistics where the configuration says so."""
        if self._config.fit.freeze_norm:
            for module in self.network.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Seed the step by itself, so that a resumed run draws what the first would have drawn."""
        torch.manual_seed(step_seed(self._config.seed, self.global_step))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002  Lightning's signature
        """Return the loss of a batch."""
        images = self._normalise(self._augment(batch.images.permute(0, 3, 1, 2)))
        logits, penalty = self.network.forward_with_penalty(images.contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits.float(), batch.targets, label_smoothing=self._config.fit.label_smoothing)
        if not math.isfinite(loss.item()):
            raise RunError(f"the loss is {loss.item()} at step {self.global_step}; try a smaller learning rate")
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(images))
        total: Tensor = loss + self._config.model.penalty * penalty
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Collect the figures of a validation batch."""
        logits = self.predict_logits(batch.images)
        self._auroc.update(logits.softmax(dim=1)[:, ALL], (batch.targets == ALL).long())
        self._f1.update(logits, batch.targets)
        loss = functional.cross_entropy(logits, batch.targets)
        self.log("val_loss", loss, prog_bar=True, batch_size=len(logits))
        self.log("val_auroc", self._auroc, prog_bar=True)
        self.log("val_weighted_f1", self._f1, prog_bar=True)

    def predict_logits(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 2)``, of pictures ``(batch, size, size, 3)``, 0..255."""
        scaled = self._normalise(images.permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(scaled)
        return logits.float()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a linear warm-up and a cosine to zero."""
        settings = self._config.optimiser
        groups = [
            group
            for part, rate in ((self.network.backbone, settings.backbone_lr), (self.network.head, settings.head_lr))
            for group in _decayed_and_not(part, rate, settings.weight_decay)
        ]
        optimiser = torch.optim.AdamW(groups)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(settings.warmup * total))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_then_cosine(step, total, warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def step_seed(seed: int, step: int) -> int:
    """Return the seed of one training step."""
    return seed * 1_000_003 + step


def warmup_then_cosine(step: int, total: int, warmup: int) -> float:
    """Return the factor of the learning rate: a line up to 1, then a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _decayed_and_not(part: nn.Module, rate: float, decay: float) -> list[dict[str, Any]]:
    """Split parameters: weight decay is for matrices and kernels, not for biases and norms."""
    parameters = [weight for weight in part.parameters() if weight.requires_grad]
    return [
        {"params": [w for w in parameters if w.ndim > 1], "lr": rate, "weight_decay": decay},
        {"params": [w for w in parameters if w.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]
