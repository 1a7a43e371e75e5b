"""What a model says of pictures, and how it comes together where each picture is looked at in its window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from app.core.parts import Preprocessing
from app.core.spec import EVIDENCE_NAME
from app.core.windows import in_order, patches, put_back


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model says of some pictures. What an older model does not give is None.

    Attributes:
        logits: Shape ``(n, labels)``, in the order of the manifest's labels.
        features: The penultimate layer's output, shape ``(n, width)``.
        evidence: Where the model saw reasons: shape ``(n, height, width)`` over the picture's crop,
            positive for ALL, negative for HEM.
        novelty: How unlike the training cells each picture is, shape ``(n,)``; the manifest says from where on
            it is no cell.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None = None
    evidence: NDArray[np.float32] | None = None
    novelty: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    @classmethod
    def joined(cls, parts: "Sequence[Outputs]") -> Self:
        """Put the outputs of several calls behind one another; all have the same ones."""
        if len(parts) == 1:
            return cls(parts[0].logits, parts[0].features, parts[0].evidence, parts[0].novelty)
        return cls(
            np.concatenate([part.logits for part in parts]),
            _joined([part.features for part in parts]),
            _joined([part.evidence for part in parts]),
            _joined([part.novelty for part in parts]),
        )

    @classmethod
    def stacked(cls, rows: "Sequence[Outputs]") -> Self:
        """Put what is said of single pictures together: the opposite of `row`."""
        return cls.joined([row.with_axis() for row in rows])

    def with_axis(self) -> "Outputs":
        """Return what is said of one picture as what is said of a batch of one."""
        return Outputs(
            self.logits[None],
            None if self.features is None else self.features[None],
            None if self.evidence is None else self.evidence[None],
            None if self.novelty is None else self.novelty[None],
        )

    def row(self, index: int) -> "Outputs":
        """Return what is said of one picture: the same arrays without their first axis."""
        return Outputs(
            self.logits[index],
            None if self.features is None else self.features[index],
            None if self.evidence is None else self.evidence[index],
            None if self.novelty is None else self.novelty[index, ...],
        )


def _joined(arrays: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    there = [array for array in arrays if array is not None]
    return np.concatenate(there) if there else None


def look(
    images: NDArray[np.uint8],
    spec: Preprocessing,
    names: Sequence[str],
    infer: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Sequence[NDArray[np.float32]]]],
) -> Outputs:
    """Compute a model's outputs, each picture's in its window.

    Args:
        images: Shape ``(n, size_px, size_px, 3)``, RGB, 0..255.
        spec: The model's preprocessing.
        names: Of its outputs.
        infer: Gives them for some batches, each with pictures of one size.

    Returns:
        One row for each picture; evidence lies on the whole picture's grid.
    """
    seen = list(patches(images, spec))
    parts = [
        [
            put_back(array, patch, spec.size_px) if name == EVIDENCE_NAME else array
            for name, array in zip(names, arrays, strict=True)
        ]
        for patch, arrays in zip(seen, infer([patch.pixels for patch in seen]), strict=True)
    ]
    return Outputs(**dict(zip(names, in_order(seen, parts), strict=True)))
