"""Registry of networks: a name and its options in, an untrained classifier out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import timm
import torch
from torch import nn

from training.tables import Activation
from training.zoo.attention import OneTokenHead, SpatialHead
from training.zoo.classifier import Classifier
from training.zoo.dense import DenseHead, DensePenaltyHead, FlatHead
from training.zoo.efficientnet import efficientnet_backbone
from training.zoo.heads import Head
from training.zoo.staged import StagedClassifier, StatisticsHead


@dataclass(frozen=True)
class Family:
    """A network of the registry.

    Attributes:
        backbone: timm's name of its backbone.
        head: Made for the backbone's feature map.
        silu: Whether it is an EfficientNet with SiLU, which can start from a ReLU6 relative.
        least_px: Smallest side of a picture.
        stages: Of a `StagedClassifier`, how many of the backbone's stages it has; 0 for other networks.
    """

    backbone: str
    head: Callable[..., Head]
    silu: bool = False
    least_px: int = 32
    stages: int = 0


Scaling = tuple[tuple[float, ...], tuple[float, ...]]

_RAW: Final[Scaling] = ((0.0,) * 3, (1.0,) * 3)

# The attention notebook does not say how VGG-19 and DenseNet-121 were pooled: by the mean, as its others.
_FAMILIES: Final = {
    "efficientnet-b3": Family("tf_efficientnet_b3", DensePenaltyHead, silu=True),
    # Later stages add nothing out of fold: training/RESULTS.md.
    "efficientnet-b3-stages": Family("tf_efficientnet_b3", StatisticsHead, silu=True, stages=5),
    "efficientnet-lite0-stages": Family("tf_efficientnet_lite0", StatisticsHead, stages=5),
    "efficientnet-b0": Family("tf_efficientnet_b0", DenseHead, silu=True),
    "efficientnet-b0-one-token": Family("tf_efficientnet_b0", OneTokenHead, silu=True),
    "efficientnet-b0-attention": Family("tf_efficientnet_b0", SpatialHead, silu=True),
    "efficientnet-lite0": Family("tf_efficientnet_lite0", DenseHead),
    "resnet50": Family("resnet50", FlatHead),
    "inception-v3": Family("inception_v3", DenseHead, least_px=75),
    "densenet121": Family("densenet121", DenseHead),
    "vgg19": Family("vgg19", DenseHead),
}


def names() -> tuple[str, ...]:
    """Return the names of all networks."""
    return tuple(_FAMILIES)


def least_px(name: str) -> int:
    """Return the smallest side of a picture that a network takes."""
    return _FAMILIES[name].least_px


def create(
    name: str,
    size_px: int,
    *,
    backbone: str | None = None,
    drop_path: float = 0.0,
    dropout: float | None = None,
    scaling: Scaling = _RAW,
    activation: Activation = "silu",
) -> Classifier:
    """Build a network with random weights.

    Args:
        name: One of `names()`.
        size_px: Side of its pictures.
        backbone: timm's name of another backbone of the same kind, such as ``efficientnet_b3``, whose
            padding differs from that of the family's ``tf_efficientnet_b3``.
        drop_path: Rate of stochastic depth, where the backbone knows it.
        dropout: In the head; None takes the head's own.
        scaling: Mean and deviation of each colour with which its pictures will be scaled.
        activation: Of an EfficientNet with SiLU, which can have hard swish instead.

    Returns:
        The network; set its weights with `training.zoo.start`.

    Raises:
        ValueError: An unknown name, or an option that the backbone does not have.
    """
    if name not in _FAMILIES:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(names())}")
    family = _FAMILIES[name]
    if size_px < family.least_px:
        raise ValueError(f"{name} takes pictures of at least {family.least_px} px, not {size_px}")
    if activation != "silu" and not family.silu:
        raise ValueError(f"{name} has no SiLU that {activation} could stand in for")
    body = _backbone(backbone or family.backbone, family.silu, drop_path, activation)
    if family.stages:
        return StagedClassifier(body, family.stages, scaling, dropout or 0.0)
    shape = {"channels": int(body.num_features)}
    if family.head in {FlatHead, SpatialHead}:
        shape["side"] = _map_side(body, size_px)
    return Classifier(body, family.head(**shape, **({} if dropout is None else {"dropout": dropout})))


def _backbone(name: str, silu: bool, drop_path: float, activation: Activation) -> Any:
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name!r}")
    if silu:
        return efficientnet_backbone(name, drop_path, activation)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        body: Any = timm.create_model(name, num_classes=0, global_pool="", **options)
    except TypeError as error:
        raise ValueError(f"{name} has no stochastic depth: drop_path must be 0") from error
    if hasattr(body, "pre_logits"):
        # VGG's own dense layers come before its classifier: 120 million weights that are not asked for.
        body.pre_logits = nn.Identity()
    return body


def _map_side(backbone: Any, size_px: int) -> int:
    """Side of the feature map, in places."""
    with torch.inference_mode():
        side = int(backbone.eval().forward_features(torch.zeros(1, 3, size_px, size_px)).shape[2])
    backbone.train()
    return side
