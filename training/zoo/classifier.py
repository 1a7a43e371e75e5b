"""What every network of the zoo is: a backbone from pictures to a feature map, and a head from there to logits."""

from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from training.zoo.heads import Head

Values = TypeVar("Values")


class Explained(NamedTuple, Generic[Values]):
    """What a network says of a batch, and why.

    Attributes:
        logits: Shape ``(batch, 2)``.
        features: What the last linear layer takes, shape ``(batch, width)``.
        evidence: Where the picture speaks for ALL (positive) or HEM (negative), shape ``(batch, h, w)``.
    """

    logits: Values
    features: Values
    evidence: Values


class Classifier(nn.Module):
    """A backbone from pictures to a feature map, and a head from the feature map to logits.

    Args:
        backbone: A timm network without its own head.
        head: For the backbone's number of channels.
    """

    def __init__(self, backbone: Any, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 2)``, for scaled pictures ``(batch, 3, height, width)``."""
        logits: Tensor = self.head(self.feature_map(images))
        return logits

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the backbone's last feature map, shape ``(batch, channels, h, w)``."""
        features: Tensor = self.backbone.forward_features(images)
        return features

    def forward_with_penalty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the scalar penalty to add to the loss."""
        return self.head.forward_with_penalty(self.feature_map(images))

    def explain(self, images: Tensor) -> Explained[Tensor]:
        """Return logits, features and evidence; in evaluation mode only."""
        return Explained(*self.head.explain(self.feature_map(images)))


def parameter_count(network: nn.Module) -> int:
    """Count trainable weights and batch-norm statistics, as Keras does."""
    statistics = sum(buffer.numel() for buffer in network.buffers() if torch.is_floating_point(buffer))
    return sum(weight.numel() for weight in network.parameters()) + statistics
