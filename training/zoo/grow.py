"""Grow an EfficientNet into a wider and deeper one that computes the same (Net2Net).

Chen, Goodfellow, Shlens 2016, "Net2Net: Accelerating Learning via Knowledge Transfer",
arXiv:1511.05641. The large network may have squeeze-excite where the small one has none.
The result is exact while both use the same activation.
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

# A gate that starts constant: sigmoid(2) is .88, on the slope where it can still learn.
_GATE_BIAS: Final = 2.0
# Copies share their sum unevenly, or they would get equal gradients and stay copies for ever.
_UNEVENNESS: Final = 0.3


@dataclass(frozen=True)
class ChannelMap:
    """Which old channel each new one copies, and the share of the old weight that it carries.

    Attributes:
        source: Old channel of each new channel; shape ``(new,)``.
        share: Factor for the weights that read the channel; sums to 1 over the copies of one.
    """

    source: Tensor
    share: Tensor

    @classmethod
    def draw(cls, old: int, new: int, generator: torch.Generator) -> Self:
        """Keep the old channels first, and fill up with copies of channels drawn without repeat.

        Raises:
            ValueError: `new` is smaller than `old`.
        """
        if new < old:
            raise ValueError(f"a network can't be grown from {old} to {new} channels")
        rounds = [torch.arange(old)]
        while sum(map(len, rounds)) < new:
            rounds.append(torch.randperm(old, generator=generator))
        source = torch.cat(rounds)[:new]
        weight = 1 + _UNEVENNESS * (2 * torch.rand(new, generator=generator, dtype=torch.float64) - 1)
        total = torch.zeros(old, dtype=torch.float64).index_add_(0, source, weight)
        return cls(source, weight / total[source])


@torch.no_grad()
def grow_efficientnet(small: nn.Module, large: nn.Module, seed: int) -> None:
    """Fill timm EfficientNet `large` with the weights of `small`, in place.

    Args:
        small: Network whose function is carried over; of the same stages, kernels and strides.
        large: As wide or wider and as deep or deeper in every stage. Its head is not touched.
        seed: For the choice of the channels that are copied.

    Raises:
        ValueError: `large` is narrower or shallower somewhere, or has another number of stages.
    """
    old: Any = small
    new: Any = large
    if len(old.blocks) != len(new.blocks):
        raise ValueError(f"{len(old.blocks)} stages can't be grown into {len(new.blocks)}")
    generator = torch.Generator().manual_seed(seed)
    stream = ChannelMap.draw(old.conv_stem.out_channels, new.conv_stem.out_channels, generator)
    new.conv_stem.weight.copy_(old.conv_stem.weight[stream.source])
    _copy_norm(old.bn1, new.bn1, stream)
    for old_stage, new_stage in zip(old.blocks, new.blocks, strict=True):
        stream = _grow_stage(list(old_stage), list(new_stage), stream, generator)
    if not hasattr(new, "conv_head"):
        return
    top = ChannelMap.draw(old.conv_head.out_channels, new.conv_head.out_channels, generator)
    _copy_pointwise(old.conv_head, new.conv_head, stream, top)
    _copy_norm(old.bn2, new.bn2, top)


def _grow_stage(old: list[Any], new: list[Any], stream: ChannelMap, generator: torch.Generator) -> ChannelMap:
    if len(new) < len(old):
        raise ValueError(f"{len(old)} blocks can't be grown into {len(new)}")
    out = ChannelMap.draw(_last_norm(old[0]).num_features, _last_norm(new[0]).num_features, generator)
    for index, block in enumerate(new):
        if index < len(old):
            _grow_block(old[index], block, stream if index == 0 else out, out, generator)
            continue
        # An added block is the identity: its branch ends in a batch norm of zeros beside the skip.
        if len(old) > 1:
            _grow_block(old[-1], block, out, out, generator)
        nn.init.zeros_(_last_norm(block).weight)
        nn.init.zeros_(_last_norm(block).bias)
    return out


def _grow_block(old: Any, new: Any, enter: ChannelMap, leave: ChannelMap, generator: torch.Generator) -> None:
    """Copy one depthwise-separable or inverted-residual block (they differ in the expansion)."""
    expands = hasattr(old, "conv_pwl")
    inner = enter
    if expands:
        inner = ChannelMap.draw(old.conv_pw.out_channels, new.conv_pw.out_channels, generator)
        _copy_pointwise(old.conv_pw, new.conv_pw, enter, inner)
        _copy_norm(old.bn1, new.bn1, inner)
    new.conv_dw.weight.copy_(old.conv_dw.weight[inner.source])
    if expands:
        _copy_norm(old.bn2, new.bn2, inner)
    else:
        _copy_norm(old.bn1, new.bn1, inner)
    old_project, new_project = (old.conv_pwl, new.conv_pwl) if expands else (old.conv_pw, new.conv_pw)
    _copy_pointwise(old_project, new_project, inner, leave)
    if not isinstance(new.se, nn.Identity):
        new_project.weight.div_(_open_gate(new.se))
    _copy_norm(_last_norm(old), _last_norm(new), leave)


def _open_gate(squeeze_excite: Any) -> float:
    """Make the gate constant, and return its value."""
    nn.init.zeros_(squeeze_excite.conv_expand.weight)
    nn.init.constant_(squeeze_excite.conv_expand.bias, _GATE_BIAS)
    return 1 / (1 + math.exp(-_GATE_BIAS))


def _last_norm(block: Any) -> Any:
    return block.bn3 if hasattr(block, "bn3") else block.bn2


def _copy_pointwise(old: Any, new: Any, enter: ChannelMap, leave: ChannelMap) -> None:
    new.weight.copy_(old.weight[leave.source][:, enter.source] * enter.share[None, :, None, None])


def _copy_norm(old: Any, new: Any, channels: ChannelMap) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).copy_(getattr(old, name)[channels.source])
