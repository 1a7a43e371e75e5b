"""Networks that read the texture of a cell: statistics of several stages, over the cell's own pixels.

The mean and the deviation of each channel, as a description of texture, are those of style transfer
(Huang & Belongie 2017, arXiv:1703.06868). The black around a cell is left out, so that the vector
does not say how large the cell is, and subjects differ less in it than in a mean over the picture.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.core.windows import BLACK
from training.data.labels import ALL
from training.zoo.classifier import Classifier, Explained
from training.zoo.efficientnet import first_stages, stage_strides
from training.zoo.heads import HEM, Head, OwnGradient

_LEAST_PIXELS: Final = 1e-3
_LEAST_VARIANCE: Final = 1e-8


class Standardise(OwnGradient):
    """Subtracts a mean and divides by a deviation, both of the training cells; set by `fit`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def fit(self, vectors: Tensor) -> None:
        """Take mean and deviation of vectors, shape ``(cells, width)``."""
        self.mean.copy_(vectors.mean(dim=0))
        # A channel that is the same in all cells says nothing, and must not be divided by 0.
        self.deviation.copy_(vectors.std(dim=0).clamp_min(1e-4))

    def forward(self, vectors: Tensor) -> Tensor:
        """Standardise vectors, shape ``(batch, width)``."""
        return (vectors - self.mean) / self.deviation

    def pull_back(self, gradient: Tensor) -> Tensor:
        """Carry a gradient back."""
        return gradient / self.deviation


class StatisticsHead(Head):
    """One linear layer on standardised statistics.

    Args:
        width: Number of statistics.
        dropout: Of single statistics.
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.standardise = Standardise(width)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(width, 2)

    def layers(self) -> tuple[nn.Module, ...]:
        """Return what stands before the linear layer."""
        return self.standardise, self.dropout

    def pool(self, features: Tensor) -> Tensor:
        """Return statistics as they are: they have been pooled."""
        return features


class StagedClassifier(Classifier):
    """The first stages of an EfficientNet, and one linear layer on the statistics of each of them.

    Args:
        backbone: A timm EfficientNet; what comes after its first `stages` is taken away.
        stages: Number of stages.
        scaling: Mean and deviation of each colour, 0..255, with which pictures are scaled.
        dropout: In the head.
    """

    black: Tensor

    def __init__(
        self,
        backbone: Any,
        stages: int,
        scaling: tuple[tuple[float, ...], tuple[float, ...]],
        dropout: float = 0.0,
    ) -> None:
        widths = first_stages(backbone, stages)
        strides = stage_strides(backbone)
        super().__init__(backbone, StatisticsHead(2 * sum(widths), dropout))
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in scaling)
        self._strides = strides
        self.register_buffer("black", (float(BLACK) - mean) / std, persistent=False)

    @property
    def stride(self) -> int:
        """Pixels from one place of the coarsest feature map to the next: windows begin at multiples of it."""
        return self._strides[-1]

    def feature_map(self, images: Tensor) -> Tensor:
        """Return the statistics, shape ``(batch, 2 * channels of all stages)``."""
        return _joined(self._views(images))

    def explain(self, images: Tensor) -> Explained[Tensor]:
        """Return logits, standardised statistics and evidence; in evaluation mode only.

        The evidence is the margin ``logit_ALL - logit_HEM`` itself, dealt out over the places of the
        cell by gradient times activation, on the coarsest stage's grid: its sum is the margin, but for
        the margin of the average training cell, which no place of this cell accounts for. (A mean is
        linear, and a deviation homogeneous, in the activations: nothing is left over.)
        """
        views = self._views(images)
        standardise = self.head.layers()[0]
        assert isinstance(standardise, Standardise)  # noqa: S101 - narrows the head's own layer
        standardised = standardise(_joined(views))
        margin = self.head.logits.weight[ALL] - self.head.logits.weight[HEM]
        gradient = standardise.pull_back(margin)
        average = (gradient * standardise.mean).sum() / len(views)
        evidence = torch.zeros_like(views[-1].weights)
        for view, (by_mean, by_deviation) in zip(views, self._by_view(gradient, views), strict=True):
            evidence = evidence + view.evidence(by_mean, by_deviation, average, self._strides[-1])
        return Explained(self.head.logits(standardised), standardised, evidence[:, 0])

    def _views(self, images: Tensor) -> list["_StageView"]:
        # The same as `(images > self.black).any(dim=1)`, which engines compute with slow whole numbers.
        cell = ((images - self.black).amax(dim=1, keepdim=True) > 0).float()
        features = self.backbone.bn1(self.backbone.conv_stem(images))
        views = []
        for stage, stride in zip(self.backbone.blocks, self._strides, strict=True):
            features = stage(features)
            views.append(_StageView(features.float(), cell, stride))
        return views

    @staticmethod
    def _by_view(gradient: Tensor, views: list["_StageView"]) -> list[tuple[Tensor, Tensor]]:
        """Cut a gradient of all statistics into those of each stage's means and deviations."""
        widths = [width for view in views for width in (view.channels, view.channels)]
        parts = torch.split(gradient, widths)
        return list(zip(parts[::2], parts[1::2], strict=True))


class _StageView:
    """One stage's feature map, seen through the cell.

    Args:
        features: Shape ``(batch, channels, h, w)``, float32.
        cell: 1 on the cell and 0 beside it, shape ``(batch, 1, height, width)``.
        stride: Pixels of the picture from one place to the next.
    """

    def __init__(self, features: Tensor, cell: Tensor, stride: int) -> None:
        self.channels = int(features.shape[1])
        self._stride = stride
        # Places at the end of a picture whose side is no multiple cover less. An exported graph of many sizes
        # knows multiples only, and would compute with every side otherwise.
        uneven = bool(cell.shape[-2] % stride or cell.shape[-1] % stride)
        share = functional.avg_pool2d(cell, stride, ceil_mode=uneven)
        # Weights of the places, which sum to 1.
        self.weights = share / share.sum(dim=(2, 3), keepdim=True).clamp_min(_LEAST_PIXELS)
        self._features = features.flatten(2)
        self._squares = self._features * self._features
        # As products of matrices: far faster in ONNX Runtime than a product and a sum.
        column = self.weights.flatten(2).transpose(1, 2)
        self._mean = torch.bmm(self._features, column)
        variance = torch.bmm(self._squares, column) - self._mean * self._mean
        self._deviation = variance.clamp_min(_LEAST_VARIANCE).sqrt()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel, each of shape ``(batch, channels)``."""
        return self._mean.flatten(1), self._deviation.flatten(1)

    def evidence(self, by_mean: Tensor, by_deviation: Tensor, average: Tensor, stride: int) -> Tensor:
        """Deal a weighted sum of the statistics out over the places.

        Args:
            by_mean: Weights of the means, shape ``(channels,)``.
            by_deviation: Weights of the deviations, same shape.
            average: What the sum is for the average cell: taken off, evenly over the cell.
            stride: Pixels from one place of the result to the next; a multiple of this stage's.

        Returns:
            Shape ``(batch, 1, h, w)``.
        """
        of_square = by_deviation / self._deviation.transpose(1, 2)
        of_value = by_mean - of_square * self._mean.transpose(1, 2)
        spread = torch.bmm(of_value, self._features) + torch.bmm(of_square, self._squares) - average
        placed = spread.reshape(self.weights.shape) * self.weights
        return _summed(placed, stride // self._stride)


def _joined(views: list[_StageView]) -> Tensor:
    """All statistics of all stages, shape ``(batch, width)``."""
    return torch.cat([part for view in views for part in view.statistics()], dim=1)


def _summed(places: Tensor, count: int) -> Tensor:
    """Sums of squares of `count` x `count` places, shape ``(batch, 1, h, w)``; those at the end may be smaller."""
    height, width = places.shape[-2:]
    if height % count or width % count:
        places = functional.pad(places, (0, -width % count, 0, -height % count))
    return functional.avg_pool2d(places, count) * count**2 if count > 1 else places
