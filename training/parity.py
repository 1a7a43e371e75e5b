"""Does the exported graph compute what the network does? PyTorch against ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn

from training.errors import ParityError

RELATIVE_TOLERANCE: Final = 1e-4
_BATCH: Final = 16


@dataclass(frozen=True)
class Parity:
    """How close two computations are.

    Attributes:
        cells: Number of pictures compared.
        largest_relative_difference: Of a logit, relative to the largest logit of its picture, or to
            1 where that is smaller: near zero, rounding alone would be a large share.
        labels_differing: Pictures whose winning class differs.
    """

    cells: int
    largest_relative_difference: float
    labels_differing: int


def onnx_logits(model: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run an exported graph on the CPU; pictures ``(batch, size, size, 3)`` to logits ``(batch, 2)``."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    parts = [
        session.run(["logits"], {"image": images[start : start + _BATCH]})[0]
        for start in track(range(0, len(images), _BATCH), "Running the graph")
    ]
    return np.concatenate(parts)


def check_parity(network: nn.Module, model: Path, images: NDArray[np.uint8]) -> Parity:
    """Compare a network with its export.

    Args:
        network: Takes pictures ``(batch, size, size, 3)``, uint8; in evaluation mode.
        model: The ONNX file.
        images: Pictures to compare on.

    Returns:
        The differences.

    Raises:
        ParityError: A relative difference over 1e-4, or another label for any picture.
    """
    with torch.inference_mode():
        expected = np.concatenate(
            [network(torch.from_numpy(images[i : i + _BATCH])).numpy() for i in range(0, len(images), _BATCH)]
        )
    actual = onnx_logits(model, images)
    scale = np.abs(expected).max(axis=1, keepdims=True).clip(min=1.0)
    parity = Parity(
        cells=len(images),
        largest_relative_difference=float((np.abs(actual - expected) / scale).max()),
        labels_differing=int((actual.argmax(axis=1) != expected.argmax(axis=1)).sum()),
    )
    if not parity.largest_relative_difference <= RELATIVE_TOLERANCE or parity.labels_differing:
        raise ParityError(f"the exported graph differs from the network: {parity}")
    return parity
