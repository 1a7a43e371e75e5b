"""Does the exported graph compute what the network does? PyTorch against ONNX Runtime."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from app.core.parts import Preprocessing
from app.core.spec import INPUT_NAME
from app.core.windows import Patch, put_back, see_windows
from training.errors import ParityError
from training.graph import OUTPUT_NAMES, Answers

RELATIVE_TOLERANCE: Final = 1e-4
# Sums in another order are rounded to another of the 256 values now and then, and the layers after see it.
# One cell in some dozens is then off by more than the others, so the usual one is held to the tolerance.
ROUNDED_TOLERANCE: Final = 0.1
_USUAL: Final = 0.9
_ROUNDED_LABELS: Final = 0.02
_BATCH: Final = 16


@dataclass(frozen=True)
class Parity:
    """How close two computations are.

    Attributes:
        cells: Number of pictures compared.
        largest_relative_difference: Of a logit, relative to the largest logit of its picture, or to
            1 where that is smaller: near zero, rounding alone would be a large share.
        usual_relative_difference: The same, of nine pictures in ten.
        labels_differing: Pictures whose winning class differs.
        feature_difference: Of a feature, relative to the largest of its picture; the median over the
            pictures, since a unit on the edge of its ReLU may stand on either side of it.
        evidence_difference: Of a place's evidence, likewise.
        novelty_difference: Of the novelty, relative to itself; the median over the pictures.
    """

    cells: int
    largest_relative_difference: float
    usual_relative_difference: float
    labels_differing: int
    feature_difference: float
    evidence_difference: float
    novelty_difference: float


def onnx_outputs(model: Path, images: NDArray[np.uint8], spec: Preprocessing) -> Answers[NDArray[np.float32]]:
    """Run an exported graph on the CPU, on pictures ``(batch, size, size, 3)``, each in its window."""
    options = ort.SessionOptions()
    # Rounded values stay floats: joined to whole-number kernels, their sums are cut off on processors without VNNI.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return _ask(images, spec, lambda pictures: Answers(*session.run(OUTPUT_NAMES, {INPUT_NAME: pictures})))


def onnx_logits(model: Path, images: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """Run an exported graph on the CPU; pictures ``(batch, size, size, 3)`` to logits ``(batch, 2)``."""
    return onnx_outputs(model, images, spec).logits


def _ask(
    images: NDArray[np.uint8], spec: Preprocessing, run: Callable[[NDArray[np.uint8]], Answers[NDArray[np.float32]]]
) -> Answers[NDArray[np.float32]]:
    """Have pictures answered batch by batch, each in its window."""

    def see(patch: Patch) -> Answers[NDArray[np.float32]]:
        said = run(patch.pixels)
        return said._replace(evidence=put_back(said.evidence, patch, spec.size_px))

    starts = track(range(0, len(images), _BATCH), "Running the graph")
    parts = [see_windows(images[start : start + _BATCH], spec, see) for start in starts]
    return Answers(*(np.concatenate(output) for output in zip(*parts, strict=True)))


def check_parity(
    network: nn.Module, model: Path, images: NDArray[np.uint8], spec: Preprocessing, *, rounded: bool = False
) -> Parity:
    """Compare a network with its export.

    Args:
        network: Takes pictures ``(batch, size, size, 3)``, uint8; in evaluation mode.
        model: The ONNX file.
        images: Pictures to compare on.
        spec: Their preprocessing, which has the windows that both look through.
        rounded: Whether the network rounds to 8 bits on its way.

    Returns:
        The differences.

    Raises:
        ParityError: A relative difference over 1e-4, or another label for any picture; of a rounded network, one of
            novelty, or of the logits of nine pictures in ten, over 0.1, or other labels for more than 2 %.
    """
    with torch.inference_mode():
        expected = _ask(images, spec, lambda one: Answers(*(part.numpy() for part in network(torch.from_numpy(one)))))
    actual = onnx_outputs(model, images, spec)
    of_logits = _differences(actual.logits, expected.logits, least_scale=1.0)
    parity = Parity(
        cells=len(images),
        largest_relative_difference=float(of_logits.max()),
        usual_relative_difference=float(np.quantile(of_logits, _USUAL)),
        labels_differing=int((actual.logits.argmax(axis=1) != expected.logits.argmax(axis=1)).sum()),
        feature_difference=float(np.median(_differences(actual.features, expected.features))),
        evidence_difference=float(np.median(_differences(actual.evidence, expected.evidence))),
        novelty_difference=float(np.median(_differences(actual.novelty, expected.novelty))),
    )
    if not (_agree_rounded(parity) if rounded else _agree(parity)):
        raise ParityError(f"the exported graph differs from the network: {parity}")
    return parity


def _agree(parity: Parity) -> bool:
    largest = max(
        parity.largest_relative_difference,
        parity.feature_difference,
        parity.evidence_difference,
        parity.novelty_difference,
    )
    return largest <= RELATIVE_TOLERANCE and not parity.labels_differing


def _agree_rounded(parity: Parity) -> bool:
    # A single feature may be a rounding step off, which is much where it hardly varies; not so what sums all up.
    largest = max(parity.usual_relative_difference, parity.novelty_difference)
    return largest <= ROUNDED_TOLERANCE and parity.labels_differing <= _ROUNDED_LABELS * parity.cells


def _differences(
    actual: NDArray[np.float32], expected: NDArray[np.float32], least_scale: float = 1e-6
) -> NDArray[np.float32]:
    """Each picture's largest difference, relative to its largest value or to `least_scale`."""
    actual, expected = (values.reshape(len(values), -1) for values in (actual, expected))
    return np.asarray(np.abs(actual - expected).max(axis=1) / np.abs(expected).max(axis=1).clip(min=least_scale))
