"""Registry of network families: a name and its options in, an untrained classifier out."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from training.zoo.efficientnet import efficientnet_b3


class Classifier(Protocol):
    """What the training needs of a network; every entry of the registry gives one.

    Attributes:
        backbone: Pictures, shape ``(batch, 3, height, width)``, to a feature map.
        head: Feature map to logits, with the penalty that belongs to its design.
    """

    backbone: nn.Module
    head: nn.Module

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, shape ``(batch, 2)``, for scaled pictures ``(batch, 3, height, width)``."""
        ...

    def forward_with_penalty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the scalar penalty to add to the loss."""
        ...


_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "efficientnet-b3": efficientnet_b3,
}


def names() -> tuple[str, ...]:
    """Return the names of all networks."""
    return tuple(_FAMILIES)


def create(name: str, **options: object) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: One of `names()`.
        **options: Passed to the family.

    Returns:
        A module that also is a `Classifier`.

    Raises:
        ValueError: An unknown name.
    """
    if name not in _FAMILIES:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(names())}")
    return _FAMILIES[name](**options)
