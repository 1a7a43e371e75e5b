"""Shows pictures to a run's network, and keeps what it says."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from app.core.windows import see_windows
from training.data.splits import Rows
from training.module import BATCH, Scaled, looking_device
from training.novelty.stages import StageMeans
from training.run import Run


class Seen(NamedTuple):
    """What a network says of pictures.

    Attributes:
        logits: Shape ``(pictures, 2)``, averaged over views.
        vectors: Means of its stages (`StageMeans`) for the picture as it is, shape ``(pictures, width)``.
    """

    logits: NDArray[np.float64]
    vectors: NDArray[np.float32]


class Observer:
    """A run's network in evaluation mode, on a GPU where there is one.

    Args:
        run: A fitted run.

    Raises:
        RunError: The run has not been fitted.
    """

    def __init__(self, run: Run) -> None:
        self._device = looking_device()
        network = run.load_network().to(memory_format=torch.channels_last)
        self._stages = StageMeans(network.backbone)
        self._spec = run.config().input.spec()
        self._module = Scaled(network, self._spec).eval().to(self._device)

    @torch.inference_mode()
    def see(self, inputs: NDArray[Any], rows: Rows | None = None, *, views: int = 1) -> Seen:
        """Look at pictures, in float32 arithmetic.

        Args:
            inputs: Shape ``(all, size, size, 3)``, 0..255.
            rows: Which of them; None takes all.
            views: Mirrored and turned views of a picture whose logits are averaged: 1, 2, 4 or 8.
        """
        rows = np.arange(len(inputs)) if rows is None else rows
        batch = BATCH[self._device.type]
        logits: list[NDArray[np.float64]] = []
        vectors: list[NDArray[np.float32]] = []
        for start in track(range(0, len(rows), batch), "Looking at pictures"):
            images = np.array(inputs[rows[start : start + batch]])
            said, seen = see_windows(images, self._spec, lambda patch: self._look(patch.pixels, views))
            logits.append(said)
            vectors.append(seen)
        return Seen(np.concatenate(logits), np.concatenate(vectors))

    def _look(self, pictures: NDArray[np.uint8], views: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Logits, and means of the stages, of pictures of one size."""
        images = torch.from_numpy(pictures).to(self._device)
        seen = [(self._module(view), self._stages.take()) for view in seen_from(images, views)]
        logits = torch.stack([said for said, _ in seen]).mean(dim=0)
        return logits.cpu().numpy().astype(np.float64), seen[0][1].cpu().numpy()


def seen_from(images: Tensor, views: int) -> Iterator[Tensor]:
    """Yield pictures, shape ``(batch, size, size, 3)``, as they are, mirrored, and turned by right angles.

    Raises:
        ValueError: `views` is not 1, 2, 4 or 8.
    """
    if views not in {1, 2, 4, 8}:
        raise ValueError(f"views are 1, 2, 4 or 8, not {views}")
    for view in range(views):
        turned = torch.rot90(images, view // 4, dims=(1, 2))
        mirrored = turned.flip(2) if view % 2 else turned
        yield mirrored.flip(1) if view % 4 >= 2 else mirrored
