"""The LightningModule: one network, its loss, its optimiser and its validation figures."""

import math
from typing import Final

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score

from app.core.parts import Preprocessing
from training.config import RunConfig
from training.data.augment import Augment, draw_flips
from training.data.datamodule import Batch
from training.data.labels import ALL, LABELS
from training.errors import RunError
from training.gradients import QuickGradients
from training.losses import classification_loss
from training.optimisers import build_optimiser, with_schedule
from training.zoo import Classifier

# Pictures that are looked at at once. Larger batches fall out of a processor's caches, smaller ones leave a GPU idle.
BATCH: Final = {"cpu": 16, "cuda": 256}


def looking_device() -> torch.device:
    """Return the device on which a network only looks: a GPU if there is one, without TensorFloat-32.

    PyTorch lets convolutions on a GPU round to 10 bits by default; figures and features are to be those of float32.
    """
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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

    def pictures(self, images: Tensor) -> Tensor:
        """Scale pictures of shape ``(batch, size, size, 3)``, 0..255, to ``(batch, 3, size, size)``."""
        scaled: Tensor = self(images.permute(0, 3, 1, 2))
        return scaled.contiguous(memory_format=torch.channels_last)


class Scaled(nn.Module):
    """A network with its scaling: takes pictures as the service does, shape ``(batch, size, size, 3)``, 0..255."""

    def __init__(self, network: Classifier, spec: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self._normalise = Normalise(spec)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 2)``, float32."""
        logits: Tensor = self.network(self._normalise.pictures(images))
        return logits.float()

    def pooled_features(self, images: Tensor) -> Tensor:
        """Return the head's pooled vectors, shape ``(batch, width)``, float32."""
        head = self.network.head
        return head.pool(head.refine(self.network.feature_map(self._normalise.pictures(images)))).float()


class CellModule(L.LightningModule):
    """Trains an injected network.

    Args:
        network: Of `training.zoo`.
        config: The run's configuration.
        class_weights: Of the loss, shape ``(2,)``; None weighs both classes alike.
        pooled: Whether batches hold, instead of pictures, the pooled features of every mirroring of
            a picture (`training.frozen`), shape ``(batch, variants, width)``.
    """

    class_weights: Tensor | None

    def __init__(
        self, network: Classifier, config: RunConfig, *, class_weights: Tensor | None = None, pooled: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self._config, self._pooled = config, pooled
        self._augment = Augment(config.augment)
        self._normalise = Normalise(config.input.spec())
        self._auroc = BinaryAUROC()
        self._f1 = MulticlassF1Score(num_classes=len(LABELS), average="weighted")
        self.register_buffer("class_weights", class_weights, persistent=False)
        if config.model.freeze:
            network.backbone.requires_grad_(requires_grad=False)

    def on_train_epoch_start(self) -> None:
        """Keep the backbone, or its batch-norm statistics, where the configuration says so."""
        if self._config.model.freeze:
            self.network.backbone.eval()
        elif self._config.fit.freeze_norm:
            for module in self.network.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Seed the step by itself, so that a resumed run draws what the first would have drawn."""
        torch.manual_seed(step_seed(self._config.seed, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002  Lightning's signature
        """Return the loss of a batch."""
        with QuickGradients():
            logits, penalty = self._classify(batch.images)
        loss = classification_loss(
            logits,
            batch.targets,
            self._config.loss,
            smoothing=self._config.fit.label_smoothing,
            weights=self.class_weights,
        )
        total: Tensor = loss + self._config.model.penalty * penalty
        if not math.isfinite(total.item()):
            raise RunError(
                f"the loss is {total.item()} at step {self.global_step}; the last checkpoint is that of the epoch "
                "before. Try a smaller learning rate, another precision, or a smaller clip_norm"
            )
        figures = {"train_loss": loss, "train_accuracy": (logits.argmax(dim=1) == batch.targets).float().mean()}
        self.log_dict(figures, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(logits), sync_dist=True)
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Collect the figures of a validation batch."""
        logits = self._validation_logits(batch.images)
        self._auroc.update(logits.softmax(dim=1)[:, ALL], (batch.targets == ALL).long())
        self._f1.update(logits, batch.targets)
        loss = functional.cross_entropy(logits, batch.targets)
        accuracy = (logits.argmax(dim=1) == batch.targets).float().mean()
        self.log_dict(
            {"val_loss": loss, "val_accuracy": accuracy}, prog_bar=True, batch_size=len(logits), sync_dist=True
        )
        self.log("val_auroc", self._auroc, prog_bar=True)
        self.log("val_weighted_f1", self._f1, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the configured optimiser with its schedule."""
        optimiser = build_optimiser(self.network, self._config.optimiser)
        return with_schedule(optimiser, self._config.optimiser, int(self.trainer.estimated_stepping_batches))

    def _classify(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and penalty of a training batch."""
        if self._pooled:
            variants = draw_flips(len(images), self._config.augment, images.device)
            chosen = images[torch.arange(len(images), device=images.device), variants]
            return self.network.head.classify(chosen)
        changed = self._normalise(self._augment(images.permute(0, 3, 1, 2)))
        return self.network.forward_with_penalty(changed.contiguous(memory_format=torch.channels_last))

    def _validation_logits(self, images: Tensor) -> Tensor:
        # In float32 whatever the training's type: so it is judged and served, and narrow types answer otherwise.
        with torch.autocast(images.device.type, enabled=False):
            if self._pooled:
                return self.network.head.classify(images[:, 0])[0]
            logits: Tensor = self.network(self._normalise.pictures(images))
            return logits


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return the seed of one training step of one process."""
    return seed * 1_000_003 + step + rank * 500_000_003
