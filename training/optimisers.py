"""Optimisers and the schedules of their learning rates."""

import math
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import lr_scheduler

from training.config import OptimiserConfig
from training.zoo import Classifier


def build_optimiser(network: Classifier, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a network's trainable weights."""
    groups = [
        group
        for part, rate in ((network.backbone, config.backbone_lr), (network.head, config.head_lr))
        for group in _decayed_and_not(part, rate, config.weight_decay)
        if group["params"]
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.momentum > 0)
    options: dict[str, Any] = {} if config.eps is None else {"eps": config.eps}
    if config.name == "adamax":
        return torch.optim.Adamax(groups, **options)
    # One pass over the weights in place of ten; but Lightning can't clip gradients before it in mixed precision.
    options["fused"] = config.clip_norm == 0
    return (torch.optim.Adam if config.name == "adam" else torch.optim.AdamW)(groups, **options)


def with_schedule(optimiser: torch.optim.Optimizer, config: OptimiserConfig, total_steps: int) -> OptimizerLRScheduler:
    """Return what Lightning wants of `configure_optimizers`.

    The notebook's schedule is a callback (`training.notebook`): it also says when to stop.

    Args:
        optimiser: Of the run.
        config: Its schedule.
        total_steps: Of the whole run, for ``cosine``.
    """
    if config.schedule == "cosine":
        warmup = max(1, round(config.warmup * total_steps))
        cosine = lr_scheduler.LambdaLR(optimiser, lambda step: warmup_then_cosine(step, total_steps, warmup))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}
    if config.schedule == "plateau":
        plateau = lr_scheduler.ReduceLROnPlateau(optimiser, factor=config.factor, patience=config.plateau_patience)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
    return optimiser


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
