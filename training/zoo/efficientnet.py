"""EfficientNets with the classifier head of the notebook that this project takes over."""

from typing import Any, Final

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.zoo.activations import Relu6ToSilu

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


class EfficientNetClassifier(nn.Module):
    """An EfficientNet backbone and a head."""

    def __init__(self, backbone: nn.Module, head: DensePenaltyHead) -> None:
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


def efficientnet_b3(*, drop_path: float = 0.0, dropout: float = 0.45) -> EfficientNetClassifier:
    """EfficientNet-B3 (Tan & Le 2019, arXiv:1905.11946) with 'same' padding and the penalised head.

    With the notebook's bookkeeping (Keras counts batch-norm statistics and the 7 numbers of its
    normalisation layer) it has 11,183,665 parameters.

    Args:
        drop_path: Rate of stochastic depth in the last block; it falls linearly to 0 at the first.
        dropout: In the head.

    Returns:
        The network with random weights and SiLU activations that can start as ReLU6.
    """
    return _classifier("tf_efficientnet_b3", drop_path=drop_path, dropout=dropout)


def stage_features(backbone: Any, images: Tensor) -> list[Tensor]:
    """Return the feature map after each stage of a timm EfficientNet, and after its top."""
    features = [backbone.bn1(backbone.conv_stem(images))]
    for stage in backbone.blocks:
        features.append(stage(features[-1]))
    features.append(backbone.bn2(backbone.conv_head(features[-1])))
    return features[1:]


def _classifier(timm_name: str, *, drop_path: float, dropout: float) -> EfficientNetClassifier:
    backbone: Any = timm.create_model(
        timm_name, num_classes=0, global_pool="", act_layer=Relu6ToSilu, drop_path_rate=drop_path
    )
    return EfficientNetClassifier(backbone, DensePenaltyHead(int(backbone.num_features), dropout=dropout))


def parameter_count(network: nn.Module) -> int:
    """Count trainable weights and batch-norm statistics, as Keras does."""
    statistics = sum(buffer.numel() for buffer in network.buffers() if torch.is_floating_point(buffer))
    return sum(weight.numel() for weight in network.parameters()) + statistics
