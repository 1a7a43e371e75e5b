"""What is particular to EfficientNets: an activation that can change over, and their stages."""

from typing import Any

import timm
from torch import Tensor, nn

from training.tables import Activation
from training.zoo.activations import LAYERS


def efficientnet_backbone(name: str, drop_path: float, activation: Activation = "silu") -> Any:
    """Build a timm EfficientNet (Tan & Le 2019, arXiv:1905.11946) without its own head.

    Args:
        name: timm's; ``tf_...`` has 'same' padding and the batch-norm epsilon of Keras.
        drop_path: Rate of stochastic depth in the last block; it falls linearly to 0 at the first.
        activation: Its own is SiLU.

    Returns:
        The backbone with random weights and activations that can start as ReLU6.
    """
    return timm.create_model(
        name, num_classes=0, global_pool="", act_layer=LAYERS[activation], drop_path_rate=drop_path
    )


def stage_features(backbone: Any, images: Tensor) -> list[Tensor]:
    """Return the feature map after each stage of a timm EfficientNet, and after its top, if it has one."""
    features = [backbone.bn1(backbone.conv_stem(images))]
    for stage in backbone.blocks:
        features.append(stage(features[-1]))
    if hasattr(backbone, "conv_head"):
        features.append(backbone.bn2(backbone.conv_head(features[-1])))
    return features[1:]


def stage_strides(backbone: Any) -> tuple[int, ...]:
    """Return how many pixels lie from one place of a stage's feature map to the next, for each stage."""
    stride = int(backbone.conv_stem.stride[0])
    strides = []
    for stage in backbone.blocks:
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                stride *= int(layer.stride[0])
        strides.append(stride)
    return tuple(strides)


def first_stages(backbone: Any, stages: int) -> list[int]:
    """Take away all that comes after a timm EfficientNet's first stages, in place.

    Args:
        backbone: Whose last stages and top go.
        stages: How many stay.

    Returns:
        Number of channels after each stage that stays.

    Raises:
        ValueError: The backbone has fewer stages.
    """
    if not 1 <= stages <= len(backbone.blocks):
        raise ValueError(f"the network has 1 to {len(backbone.blocks)} stages, not {stages}")
    backbone.blocks = backbone.blocks[:stages]
    del backbone.conv_head, backbone.bn2
    return [
        int(stage[-1].bn3.num_features if hasattr(stage[-1], "bn3") else stage[-1].bn2.num_features)
        for stage in backbone.blocks
    ]
