"""Heads of dense layers: the penalised one of the B3 notebook, and those of the attention notebook."""

from typing import Final

from torch import Tensor, nn

from training.data.labels import LABELS
from training.zoo.heads import Head, keras_linear, keras_norm


class DensePenaltyHead(Head):
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
        self.norm = keras_norm(channels)
        self.dense = keras_linear(channels, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.logits = keras_linear(hidden, len(LABELS))

    def layers(self) -> tuple[nn.Module, ...]:
        """Return batch norm, dense layer, ReLU and dropout."""
        return self.norm, self.dense, self.relu, self.dropout

    def pool(self, features: Tensor) -> Tensor:
        """Take each channel's largest value."""
        return features.amax(dim=(2, 3))

    def classify(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the scalar penalty of this batch."""
        hidden = self.relu(self.dense(self.norm(vector)))
        penalty = (
            self.kernel_l2 * self.dense.weight.square().sum()
            + self.bias_l1 * self.dense.bias.abs().sum()
            + self.activity_l1 * hidden.float().abs().sum() / len(hidden)
        )
        logits: Tensor = self.logits(self.dropout(hidden))
        return logits, penalty


class DenseHead(Head):
    """Global average pooling, a dense layer with ReLU, dropout, logits: the head of the frozen baselines.

    Args:
        channels: Of the feature map.
        hidden: Width of the dense layer.
        dropout: Share of its outputs that is dropped in training.
    """

    def __init__(self, channels: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.dense = keras_linear(channels, hidden)
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.logits = keras_linear(hidden, len(LABELS))

    def layers(self) -> tuple[nn.Module, ...]:
        """Return dense layer, ReLU and dropout."""
        return self.dense, self.relu, self.dropout

    def pool(self, features: Tensor) -> Tensor:
        """Take each channel's mean."""
        return features.mean(dim=(2, 3))


class FlatHead(DenseHead):
    """Like `DenseHead`, but every place of the feature map is an input of its own.

    Args:
        channels: Of the feature map.
        side: Of the feature map, in places.
        hidden: Width of the dense layer.
        dropout: Share of its outputs that is dropped in training.
    """

    def __init__(self, channels: int, side: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__(channels * side * side, hidden, dropout)

    def pool(self, features: Tensor) -> Tensor:
        """Lay the whole feature map out as one vector."""
        return features.flatten(1)

    def channel_weights(self, gradient: Tensor, features: Tensor) -> Tensor:
        """Return the spatial mean of the gradient over the feature map, shape ``(batch, channels)``."""
        return gradient.reshape(features.shape).mean(dim=(2, 3))


def two_dense_layers(inputs: int, dropouts: tuple[float, float]) -> nn.Sequential:
    """Make the end of the attention notebook's network, up to its logits.

    Args:
        inputs: Width of the vector.
        dropouts: After the first and the second layer.

    Returns:
        Dense 256 and dense 128, each with leaky ReLU .1, batch norm and dropout.
    """
    layers: list[nn.Module] = []
    for width, dropout in zip((256, 128), dropouts, strict=True):
        layers += [keras_linear(inputs, width), nn.LeakyReLU(0.1), keras_norm(width), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers)
