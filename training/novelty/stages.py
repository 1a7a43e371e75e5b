"""What a network's stages see of a picture, as one vector: the spatial mean of every channel.

Measured on efficientnet-b3 0.1.1 (docs/training.md), these vectors tell what is no cell from cells better
than the penultimate features do: those keep what tells ALL from HEM, and forget the rest.
"""

from typing import Any

import torch
from torch import Tensor, nn


class StageMeans:
    """Watches a backbone, and keeps what its stages gave in the last pass, pooled.

    The last stage is left out: it is the one that has learnt the training subjects most.

    Args:
        backbone: A timm network; it says itself where its stages end.
    """

    def __init__(self, backbone: Any) -> None:
        self._means: list[Tensor] = []
        for stage in backbone.feature_info[:-1]:
            backbone.get_submodule(stage["module"]).register_forward_hook(self._keep)

    def take(self) -> Tensor:
        """Return the vectors of the pictures that have just passed, shape ``(batch, width)``, and forget them."""
        vectors = torch.cat(self._means, dim=1)
        self._means.clear()
        return vectors

    def _keep(self, _stage: nn.Module, _taken: Any, given: Tensor) -> None:
        self._means.append(given.float().mean(dim=(2, 3)))
