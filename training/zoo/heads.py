"""Heads: from a feature map to logits, to the features behind them, and to a map of what spoke for ALL.

The map is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the margin ``logit_ALL - logit_HEM``,
signed and not scaled. Its gradient is written out in forward operations, so that it is part of an
exported graph.
"""

from typing import Final

import torch
from torch import Tensor, nn

from training.data.labels import ALL

HEM: Final = 1 - ALL


class OwnGradient(nn.Module):
    """A layer that, in evaluation mode, is affine, and carries gradients back by itself."""

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Carry a gradient from the output to the input, shape ``(batch, outputs)`` to ``(batch, inputs)``."""
        raise NotImplementedError


class Head(nn.Module):
    """Pools a feature map, and classifies the pooled vector by layers of which the last gives the logits.

    Subclasses say how they pool and what their layers are.

    Attributes:
        logits: The last layer.
        idle: Names of weights that no gradient can ever reach.
        learns_after_pooling: Whether everything that can be trained stands behind the pooling.
    """

    logits: nn.Linear
    idle: frozenset[str] = frozenset()
    learns_after_pooling: bool = True

    def layers(self) -> tuple[nn.Module, ...]:
        """Return what stands between pooling and logits, in order; of the kinds that `pull_back` knows."""
        raise NotImplementedError

    def refine(self, features: Tensor) -> Tensor:
        """Change the feature map before it is pooled and explained; here not at all."""
        return features

    def pool(self, features: Tensor) -> Tensor:
        """Make one vector of a refined feature map, shape ``(batch, channels, h, w)``."""
        raise NotImplementedError

    def channel_weights(self, gradient: Tensor, features: Tensor) -> Tensor:
        """Return the spatial mean of the gradient over the feature map, shape ``(batch, channels)``.

        However a maximum or a mean deals the pooled vector's gradient out over the map, its sum stays.

        Args:
            gradient: Of the pooled vector.
            features: The refined feature map.
        """
        return gradient / (features.shape[2] * features.shape[3])

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 2)``, for a feature map ``(batch, channels, h, w)``."""
        return self.classify(self.pool(self.refine(features)))[0]

    def forward_with_penalty(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and a scalar to add to the loss."""
        return self.classify(self.pool(self.refine(features)))

    def classify(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of pooled vectors, and the scalar to add to the loss, here 0."""
        for layer in self.layers():
            vector = layer(vector)
        logits: Tensor = self.logits(vector)
        return logits, logits.new_zeros(())

    def explain(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, penultimate features and evidence; in evaluation mode only.

        Args:
            features: The feature map, shape ``(batch, channels, h, w)``.

        Returns:
            Shapes ``(batch, 2)``, ``(batch, width)`` and ``(batch, h, w)``. Evidence is positive where
            the picture speaks for ALL and negative where it speaks for HEM.
        """
        features = self.refine(features)
        taken = [self.pool(features)]
        for layer in self.layers():
            taken.append(layer(taken[-1]))
        margin = self.logits.weight[ALL] - self.logits.weight[HEM]
        gradient = margin.expand_as(taken[-1])
        for layer, value in zip(reversed(self.layers()), reversed(taken[:-1]), strict=True):
            gradient = pull_back(layer, value, gradient)
        # A product of matrices for each picture: ONNX Runtime adds up a plain sum otherwise for a lone
        # picture than for a batch.
        weights = self.channel_weights(gradient, features)[:, None]
        evidence = torch.bmm(weights, features.flatten(2)).reshape(-1, *features.shape[2:])
        return self.logits(taken[-1]), taken[-1], evidence


def keras_linear(inputs: int, outputs: int) -> nn.Linear:
    """Make a dense layer that starts as Keras's do: Glorot-uniform kernel, zero bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def keras_norm(channels: int) -> nn.BatchNorm1d:
    """Make a batch norm with Keras's defaults; its momentum .99 is .01 in PyTorch's terms."""
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


def pull_back(layer: nn.Module, taken: Tensor, gradient: Tensor) -> Tensor:
    """Carry a gradient from a layer's output to its input, in evaluation mode, by forward operations.

    Args:
        layer: Linear, batch norm, ReLU, leaky ReLU, dropout, or one with `OwnGradient`.
        taken: The layer's input, shape ``(batch, inputs)``.
        gradient: With respect to its output, shape ``(batch, outputs)``.

    Returns:
        With respect to its input, shape ``(batch, inputs)``.

    Raises:
        TypeError: Another kind of layer.
    """
    match layer:
        case OwnGradient():
            return layer.pull_back(gradient)
        case nn.Linear():
            return gradient @ layer.weight
        case nn.BatchNorm1d(running_var=Tensor() as variance):
            return gradient * (layer.weight * torch.rsqrt(variance + layer.eps))
        case nn.ReLU():
            return torch.where(taken > 0, gradient, 0.0)
        case nn.LeakyReLU():
            return torch.where(taken > 0, gradient, layer.negative_slope * gradient)
        case nn.Dropout():
            return gradient
        case _:
            raise TypeError(f"the gradient of {type(layer).__name__} is not written out")
