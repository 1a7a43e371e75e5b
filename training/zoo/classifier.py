"""What every network of the zoo is: a backbone, and the head of the notebook that this project takes over."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES: Final = 2


class DensePenaltyHead(nn.Module):
    """Global max pooling, batch norm, a penalised dense layer, dropout, logits.

    The penalties follow Keras: ``.016 * sum(W^2) + .006 * sum(|b|) + .006 * sum(|a|) / batch``,
    with ``a`` the layer's output after ReLU.

    Args:
        channels: Of the feature map.
        hidden: Width of the dense layer.
        dropout: Share of its outputs that is dropped in training.
    """

    kernel_l2: Final = 0.016
    bias_l1: Final = 0.006
    activity_l1: Final = 0.006

    def __init__(self, channels: int, hidden: int = 256, dropout: float = 0.45) -> None:
        super().__init__()
        # Keras' momentum .99 is .01 in PyTorch's terms.
        self.norm = nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)
        self.dense = nn.Linear(channels, hidden)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(hidden, CLASSES)
        for layer in (self.dense, self.logits):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 2)``, for a feature map ``(batch, channels, h, w)``."""
        return self._classify(self._hidden(features))

    def forward_with_penalty(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the scalar penalty of this batch."""
        hidden = self._hidden(features)
        penalty = (
            self.kernel_l2 * self.dense.weight.square().sum()
            + self.bias_l1 * self.dense.bias.abs().sum()
            + self.activity_l1 * hidden.float().abs().sum() / len(hidden)
        )
        return self._classify(hidden), penalty

    def _hidden(self, features: Tensor) -> Tensor:
        return functional.relu(self.dense(self.norm(features.amax(dim=(2, 3)))))

    def _classify(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.dropout(hidden))
        return logits


class Classifier(nn.Module):
    """A backbone from pictures to a feature map, and a head from the feature map to logits.

    Args:
        backbone: A timm network without its own head.
        head: For the backbone's number of channels.
    """

    def __init__(self, backbone: Any, head: DensePenaltyHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 2)``, for scaled pictures ``(batch, 3, height, width)``."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def forward_with_penalty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the scalar penalty to add to the loss."""
        return self.head.forward_with_penalty(self.backbone(images))


def parameter_count(network: nn.Module) -> int:
    """Count trainable weights and batch-norm statistics, as Keras does."""
    statistics = sum(buffer.numel() for buffer in network.buffers() if torch.is_floating_point(buffer))
    return sum(weight.numel() for weight in network.parameters()) + statistics
