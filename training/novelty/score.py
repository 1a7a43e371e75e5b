"""The novelty score: how far a picture's stage means lie from those of the training cells."""

from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.errors import RunError

METHOD: Final = "root mean square of the stages' channel means, whitened by the training cells; 1 is usual for them"

# Of the correlations towards none. Without it, directions in which training cells hardly differ would decide alone,
# and so would the rounding of half precision and of 8 bits.
_SHRINKAGE: Final = 0.05
# Of the median deviation: a channel that is the same for all cells would divide by nothing.
_LEAST_SCALE: Final = 0.01
# JSON has no infinity.
_LARGEST: Final = 1e4
_CELLS_QUANTILE: Final = 0.99
_PICTURES_QUANTILE: Final = 0.05
# How far, on a log scale, from cells to pictures that are none the threshold stands. Over random choices of 7 out of
# 21 unseen subjects, .15 flagged at most 1.2 % of the cells of the other 14, and 0 up to 9 %.
_WAY: Final = 0.15


class Novelty(nn.Module):
    """The Mahalanobis distance from the training cells, divided by the square root of the width.

    Attributes:
        mean: Of the training cells, shape ``(width,)``.
        scale: Their standard deviation, shape ``(width,)``.
        whitening: Takes the scaled vectors' correlations away, shape ``(width, width)``.
    """

    mean: Tensor
    scale: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("whitening", whitening)

    @classmethod
    def fit(cls, vectors: NDArray[np.floating], weights: NDArray[np.float64]) -> Self:
        """Fit a normal distribution with shrunken correlations.

        Args:
            vectors: Of training cells, shape ``(cells, width)``.
            weights: Of each cell; they sum to 1.
        """
        values = vectors.astype(np.float64)
        mean = weights @ values
        deviation = np.sqrt(weights @ (values - mean) ** 2)
        least = _LEAST_SCALE * float(np.median(deviation)) or 1.0  # all alike: nothing to scale by
        scale = deviation.clip(min=least)
        scaled = (values - mean) / scale
        correlation = (1 - _SHRINKAGE) * (scaled.T * weights) @ scaled + _SHRINKAGE * np.eye(len(mean))
        variances, directions = np.linalg.eigh(correlation)
        # Half precision is enough, and halves the matrix in the exported file.
        whitening = (directions / np.sqrt(variances)).astype(np.float16)
        return cls(*(torch.tensor(part.astype(np.float32)) for part in (mean, scale, whitening)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Return the score, shape ``(batch,)``, of vectors ``(batch, width)``; at most 10,000."""
        whitened = ((vectors - self.mean) / self.scale) @ self.whitening
        return whitened.square().mean(dim=1).sqrt().clamp(max=_LARGEST)

    def score(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the score of vectors on the CPU; see `forward`."""
        scores: NDArray[np.float32] = self(torch.from_numpy(vectors)).numpy()
        return scores

    def save(self, file: Path) -> None:
        """Write it, whole or not at all."""
        part = file.with_name(f"{file.name}.part")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, part)
        part.replace(file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read it.

        Raises:
            RunError: It is not there.
        """
        if not file.is_file():
            raise RunError(f"{file} is missing; evaluate the run anew")
        return cls(**load_file(file))


def choose_threshold(cells: NDArray[np.floating], pictures: NDArray[np.floating]) -> float:
    """Find where a score counts as no cell.

    Args:
        cells: Scores of cells of subjects that the network was not trained on.
        pictures: Scores of pictures that are no cells.

    Returns:
        Some way above nearly all cells, since other subjects' cells lie further out than these few's; but where
        the pictures lie so near that there is no room for it, the cells' own quantile.
    """
    usual = max(float(np.quantile(cells, _CELLS_QUANTILE)), float(np.finfo(np.float32).eps))
    least = max(usual, float(np.quantile(pictures, _PICTURES_QUANTILE)))
    return float(usual * (least / usual) ** _WAY)
