"""Temperature and review band, both from validation subjects alone."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from app.core.parts import ReviewBand
from app.core.postprocess import softmax

_LIMITS: Final = (0.05, 20.0)


def fit_temperature(logits: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Find the temperature with the least cross-entropy (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: Shape ``(cells, classes)``.
        targets: Right classes, shape ``(cells,)``.

    Returns:
        Temperature in .05..20.
    """

    def loss(log_temperature: float) -> float:
        probability = softmax(logits, float(np.exp(log_temperature)))
        return float(-np.log(probability[np.arange(len(targets)), targets].clip(1e-12)).mean())

    best = minimize_scalar(loss, bounds=(np.log(_LIMITS[0]), np.log(_LIMITS[1])), method="bounded")
    return float(np.exp(best.x))


def choose_review_band(
    probability: NDArray[np.float64], truth: NDArray[np.bool_], accuracy: float, sensitivity: float
) -> ReviewBand:
    """Find the narrowest band around .5 outside which answers are right often enough.

    Args:
        probability: Of ALL, calibrated, shape ``(cells,)``.
        truth: Whether the cell is ALL, same shape.
        accuracy: Wanted share of right answers outside the band, 0..1.
        sensitivity: Wanted share of ALL cells outside the band that are called ALL, 0..1.

    Returns:
        A band symmetric about .5. Where no band reaches both, the one that leaves the surest twentieth
        of the cells unreviewed.
    """
    margin = np.abs(probability - 0.5)
    order = np.argsort(-margin, kind="stable")
    correct, positive = ((probability >= 0.5) == truth)[order], truth[order]
    answered = np.arange(1, len(order) + 1)
    found = np.cumsum(correct & positive) / np.cumsum(positive).clip(min=1)
    least = max(1, len(order) // 20)
    enough = np.flatnonzero((np.cumsum(correct) / answered >= accuracy) & (found >= sensitivity))
    kept = max(least, int(enough[-1]) + 1 if len(enough) else 0)
    half = float(margin[order[kept]]) if kept < len(order) else 0.0
    return ReviewBand(low=round(0.5 - half, 4), high=round(0.5 + half, 4))
