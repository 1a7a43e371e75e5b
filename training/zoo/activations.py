"""An activation that goes over from ReLU6 to SiLU while the network is trained."""

from torch import Tensor, nn
from torch.nn import functional


class Relu6ToSilu(nn.Module):
    """Computes ``(1 - t) * relu6(x) + t * silu(x)``.

    A network grown from a ReLU6 relative computes just what the relative does at ``t = 0``
    and is a plain SiLU network at ``t = 1``.

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
            return functional.silu(x)
        if self.progress <= 0.0:
            return functional.relu6(x)
        return functional.relu6(x).lerp(functional.silu(x), self.progress)


def set_activation_progress(network: nn.Module, progress: float) -> None:
    """Set ``t`` of every `Relu6ToSilu` in a network; others are left alone.

    Raises:
        ValueError: `progress` is outside 0..1.
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is in 0..1, not {progress}")
    for module in network.modules():
        if isinstance(module, Relu6ToSilu):
            module.progress = progress
