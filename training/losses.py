"""Losses of two-class logits, with label smoothing and class weights."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from training.config import LossConfig
from training.data.labels import LABELS

# Stands in for the logarithm of a one-hot label's zero, as in the paper.
_LOG_OF_ZERO: Final = -4.0


def classification_loss(
    logits: Tensor, targets: Tensor, config: LossConfig, *, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Compute the mean loss of a batch.

    Args:
        logits: Shape ``(batch, 2)``.
        targets: Right classes, shape ``(batch,)``.
        config: Which loss.
        smoothing: Share of the label that is spread over both classes, 0..1.
        weights: Of each class; the mean is then a weighted one.

    Returns:
        A scalar.
    """
    log_probability = functional.log_softmax(logits.float(), dim=1)
    labels = functional.one_hot(targets, len(LABELS)).to(log_probability)
    labels = labels * (1 - smoothing) + smoothing / len(LABELS)
    if config.name == "focal":
        loss = -(labels * (1 - log_probability.exp()).pow(config.gamma) * log_probability)
    else:
        loss = -(labels * log_probability)
    if config.name == "symmetric":
        reverse = -(log_probability.exp() * labels.clamp_min(1e-12).log().clamp_min(_LOG_OF_ZERO))
        loss = config.alpha * loss + config.beta * reverse
    if weights is None:
        return loss.sum(dim=1).mean()
    mine = weights[targets]
    return (loss.sum(dim=1) * mine).sum() / mine.sum()


def balanced_class_weights(targets: Tensor) -> Tensor:
    """Return each class's weight, inverse to its count, with mean 1 over the cells.

    Args:
        targets: Classes of all training cells, shape ``(cells,)``.
    """
    counts = torch.bincount(targets, minlength=len(LABELS)).clamp_min(1)
    return len(targets) / (len(LABELS) * counts.float())
