"""Activations that go over from ReLU6 to the network's own while it is trained."""

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from training.tables import Activation


class Relu6To(nn.Module):
    """Computes ``(1 - t) * relu6(x) + t * own(x)``.

    A network grown from a ReLU6 relative computes just what the relative does at ``t = 0``
    and has its own activation alone at ``t = 1``.

    Attributes:
        progress: ``t``, in 0..1.
    """

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        del inplace  # timm passes it; a mixture can't be computed in place
        self.progress = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation elementwise."""
        if self.progress >= 1.0:
            return self.own(x)
        if self.progress <= 0.0:
            return functional.relu6(x)
        return functional.relu6(x).lerp(self.own(x), self.progress)

    def own(self, x: Tensor) -> Tensor:
        """Apply the network's own activation."""
        raise NotImplementedError


class Relu6ToSilu(Relu6To):
    """From ReLU6 to SiLU."""

    def own(self, x: Tensor) -> Tensor:
        """Apply SiLU."""
        return functional.silu(x)


class Relu6ToHardSwish(Relu6To):
    """From ReLU6 to hard swish."""

    def own(self, x: Tensor) -> Tensor:
        """Apply hard swish."""
        return functional.hardswish(x)


LAYERS: Final[Mapping[Activation, type[Relu6To]]] = {"silu": Relu6ToSilu, "hard-swish": Relu6ToHardSwish}


def set_activation_progress(network: nn.Module, progress: float) -> None:
    """Set ``t`` of every `Relu6To` in a network; others are left alone.

    Raises:
        ValueError: `progress` is outside 0..1.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is in 0..1, not {progress}")
    for module in network.modules():
        if isinstance(module, Relu6To):
            module.progress = progress
