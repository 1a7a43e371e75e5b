"""EfficientNets of the zoo."""

from typing import Any

import timm
from torch import Tensor

from training.zoo.activations import Relu6ToSilu
from training.zoo.classifier import Classifier
from training.zoo.heads import DensePenaltyHead


def efficientnet_b3(*, drop_path: float = 0.0, dropout: float = 0.45) -> Classifier:
    """EfficientNet-B3 (Tan & Le 2019, arXiv:1905.11946) with 'same' padding and the penalised head.

    With the notebook's bookkeeping (Keras counts batch-norm statistics and the 7 numbers of its
    normalisation layer) it has 11,183,665 parameters.

    Args:
        drop_path: Rate of stochastic depth in the last block; it falls linearly to 0 at the first.
        dropout: In the head.

    Returns:
        The network with random weights and SiLU activations that can start as ReLU6.
    """
    return _classifier("tf_efficientnet_b3", drop_path=drop_path, dropout=dropout)


def stage_features(backbone: Any, images: Tensor) -> list[Tensor]:
    """Return the feature map after each stage of a timm EfficientNet, and after its top."""
    features = [backbone.bn1(backbone.conv_stem(images))]
    for stage in backbone.blocks:
        features.append(stage(features[-1]))
    features.append(backbone.bn2(backbone.conv_head(features[-1])))
    return features[1:]


def _classifier(timm_name: str, *, drop_path: float, dropout: float) -> Classifier:
    backbone: Any = timm.create_model(
        timm_name, num_classes=0, global_pool="", act_layer=Relu6ToSilu, drop_path_rate=drop_path
    )
    return Classifier(backbone, DensePenaltyHead(int(backbone.num_features), dropout=dropout))
