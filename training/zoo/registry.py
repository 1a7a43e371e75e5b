"""Registry of network families: a name and its options in, an untrained classifier out."""

from collections.abc import Callable

from training.zoo.classifier import Classifier
from training.zoo.efficientnet import efficientnet_b3

_FAMILIES: dict[str, Callable[..., Classifier]] = {
    "efficientnet-b3": efficientnet_b3,
}


def names() -> tuple[str, ...]:
    """Return the names of all networks."""
    return tuple(_FAMILIES)


def create(name: str, **options: object) -> Classifier:
    """Build a network with random weights.

    Args:
        name: One of `names()`.
        **options: Passed to the family.

    Returns:
        The network; set its weights with `training.zoo.start`.

    Raises:
        ValueError: An unknown name.
    """
    if name not in _FAMILIES:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(names())}")
    return _FAMILIES[name](**options)
