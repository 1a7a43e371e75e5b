"""Put start weights into a network: random, timm's, a file's, or grown from a smaller relative."""

from pathlib import Path
from typing import Final

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training.errors import ConfigError
from training.tables import StartConfig
from training.zoo.classifier import Classifier
from training.zoo.efficientnet import first_stages
from training.zoo.grow import grow_efficientnet
from training.zoo.quantised import lay_out
from training.zoo.staged import StagedClassifier

_TOP: Final = ("conv_head.", "bn2.")
_HEADS: Final = ("classifier.", "fc.", "head.", "pre_logits.")


def apply_start(network: Classifier, start: StartConfig, seed: int) -> None:
    """Fill a network's backbone (or, from a file, all of it) with its start weights, in place.

    A grown network computes what its relative does only with `set_activation_progress(network, 0)`.

    Args:
        network: A network of `training.zoo`, freshly built.
        start: Where the weights come from.
        seed: For the channels that growing copies.

    Raises:
        ConfigError: The file is missing or does not fit the network.
    """
    if start.kind == "pretrained":
        name = network.backbone.default_cfg["architecture"]
        fetched = timm.create_model(name, pretrained=True, num_classes=0, global_pool="")
        network.backbone.load_state_dict(_of(network, _without_head(fetched.state_dict())))
    elif start.kind == "file" and start.file is not None:
        _load(network, start.file)
    elif start.kind == "grown" and start.relative is not None:
        relative = _relative(start.relative, start.file)
        if isinstance(network, StagedClassifier):
            first_stages(relative, len(network.backbone.blocks))
        grow_efficientnet(relative, network.backbone, seed)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file as float32.

    Raises:
        ConfigError: Missing or no safetensors file.
    """
    if not file.is_file():
        raise ConfigError(
            f"{file}: there are no start weights; make them with 'leukoscope-train distil', "
            "or name a safetensors file with --start"
        )
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{file}: start weights can't be read: {error}") from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def _relative(name: str, file: Path | None) -> nn.Module:
    network: nn.Module = timm.create_model(name, pretrained=file is None, num_classes=0, global_pool="")
    if file is not None:
        _load_state(network, _without_head(read_weights(file)), file)
    return network


def _load(network: Classifier, file: Path) -> None:
    weights = read_weights(file)
    whole = any(name.startswith("backbone.") for name in weights)
    if whole:
        if any(name.endswith(".weight_scale") for name in weights):
            lay_out(network.backbone)  # they have been rounded to 8 bits
        _load_state(network, weights, file)
    else:
        _load_state(network.backbone, _of(network, _without_head(weights)), file)


def _of(network: Classifier, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the weights of the stages that a network of first stages does not have."""
    if not isinstance(network, StagedClassifier):
        return weights
    mine = network.backbone.state_dict()
    later = [name for name in weights if name.startswith((*_TOP, "blocks.")) and name not in mine]
    return {name: tensor for name, tensor in weights.items() if name not in later}


def _without_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what timm calls a classifier, in any of its networks."""
    return {key: value for key, value in weights.items() if not key.startswith(_HEADS)}


def _load_state(network: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{file}: the weights are not those of this network: {error}") from error
