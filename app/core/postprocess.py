"""From the model's logits to a label, a calibrated confidence and the wish for a second look."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.spec import Manifest

POSITIVE: Final = "ALL"
LOW_CONFIDENCE: Final = "low-confidence"

# Beyond the sixth digit a probability is arithmetic noise, which differs between providers.
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: ``ALL`` or ``HEM``.
        confidence: Probability of `label`, 0..1.
        probabilities: Probability of each label; they sum to 1.
        reasons: Why a person should look, such as ``low-confidence``; empty if none need.
    """

    label: str
    confidence: float
    probabilities: dict[str, float]
    reasons: tuple[str, ...]

    @property
    def review(self) -> bool:
        """Whether a person should look."""
        return bool(self.reasons)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Temperature-scaled softmax over the last axis (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: Shape ``(..., classes)``.
        temperature: Above 1 softens, below 1 sharpens; positive.

    Returns:
        Probabilities of the same shape.
    """
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def postprocess(logits: NDArray[np.floating], manifest: Manifest) -> Prediction:
    """Turn the logits of one picture, shape ``(classes,)``, into a prediction."""
    values = softmax(logits, manifest.temperature)
    probabilities = {label: round(float(value), _DIGITS) for label, value in zip(manifest.labels, values, strict=True)}
    label = manifest.labels[int(values.argmax())]
    uncertain = manifest.review.low <= probabilities[POSITIVE] <= manifest.review.high
    return Prediction(
        label=label,
        confidence=probabilities[label],
        probabilities=probabilities,
        reasons=(LOW_CONFIDENCE,) if uncertain else (),
    )
