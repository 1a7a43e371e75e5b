"""From the model's logits to a label, a calibrated confidence and the wish for a second look."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.spec import Manifest

POSITIVE: Final = "ALL"
LOW_CONFIDENCE: Final = "low-confidence"
OUT_OF_DISTRIBUTION: Final = "out-of-distribution"

# Beyond the sixth digit a probability is arithmetic noise, which differs between providers.
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: ``ALL`` or ``HEM``.
        confidence: Probability of `label`, 0..1.
        probabilities: Probability of each label; they sum to 1.
        reasons: Why a person should look, ``low-confidence`` or ``out-of-distribution``; empty if none need.
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


def postprocess(logits: NDArray[np.floating], manifest: Manifest, novelty: float | None = None) -> Prediction:
    """Turn what the model says of one picture into a prediction.

    Args:
        logits: Shape ``(classes,)``.
        manifest: Of the model.
        novelty: How unlike the training cells the picture is; None where the model does not say.

    Returns:
        The prediction; a picture that seems to be no cell has a label, too, and the reason not to trust it.
    """
    values = softmax(logits, manifest.temperature)
    probabilities = {label: round(float(value), _DIGITS) for label, value in zip(manifest.labels, values, strict=True)}
    label = manifest.labels[int(values.argmax())]
    reasons = {
        LOW_CONFIDENCE: manifest.review.low <= probabilities[POSITIVE] <= manifest.review.high,
        OUT_OF_DISTRIBUTION: _is_novel(novelty, manifest),
    }
    return Prediction(
        label=label,
        confidence=probabilities[label],
        probabilities=probabilities,
        reasons=tuple(reason for reason, applies in reasons.items() if applies),
    )


def _is_novel(novelty: float | None, manifest: Manifest) -> bool:
    if novelty is None or manifest.novelty is None:
        return False
    # What is no number is no cell either.
    return not novelty <= manifest.novelty.threshold
