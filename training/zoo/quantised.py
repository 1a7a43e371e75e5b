"""Convolutions of 8 bits: whole numbers in, whole weights, and everything else in float32.

After Jacob et al. 2018 (arXiv:1712.05877): weights by channel and symmetric, inputs by tensor with a
zero point. A convolution's sum, its activation, squeeze-excite and the head stay in float32. The network
computes with rounded floats what an engine computes with whole numbers, so that a head can be taught
on, and judged by, the rounded features.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from training.zoo.rounding import dequantise, round_trip

_Module = TypeVar("_Module", bound=nn.Module)

_LARGEST_INPUT: Final = 255
_LARGEST_WEIGHT: Final = 127
# A convolution of timm's EfficientNets, and the batch norm, with its activation, that comes after it.
_PAIRS: Final = {
    "EfficientNet": {"conv_stem": "bn1"},
    "DepthwiseSeparableConv": {"conv_dw": "bn1", "conv_pw": "bn2"},
    "InvertedResidual": {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"},
}


class QuantisedConv(nn.Module):
    """A convolution of 8 bits, with a float32 sum; its numbers are set by `quantise`, or loaded.

    Args:
        conv: Whose shape it takes.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self._same = isinstance(conv, Conv2dSame)
        self._pad: tuple[int, ...] = ()
        self._kernel = list(conv.kernel_size)
        self._stride, self._padding = list(conv.stride), conv.padding
        self._dilation, self._groups = list(conv.dilation), conv.groups
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(conv.out_channels))
        self.register_buffer("bias", torch.zeros(conv.out_channels))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def set(self, weight: Tensor, bias: Tensor, lowest: float, highest: float) -> None:
        """Round a convolution's weights, and spread the 256 input values over a range.

        Args:
            weight: Float32, of the convolution's shape.
            bias: Shape ``(out_channels,)``.
            lowest: Of the inputs.
            highest: Of the inputs.
        """
        largest = weight.abs().amax(dim=(1, 2, 3)).clamp_min(torch.finfo(weight.dtype).tiny)
        self.weight_scale.copy_(largest / _LARGEST_WEIGHT)
        self.weight.copy_((weight / self.weight_scale.view(-1, 1, 1, 1)).round())
        self.bias.copy_(bias)
        self.spread(lowest, highest)

    def spread(self, lowest: float, highest: float) -> None:
        """Spread the 256 input values over a range; 0 is always among them."""
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        scale = (highest - lowest) / _LARGEST_INPUT or 1.0
        self.scale.fill_(scale)
        self.zero_point.fill_(round(-lowest / scale))

    def fix_padding(self) -> None:
        """Pad every input alike from now on: as 'same' does where sides are multiples of the stride."""
        if self._same:
            self._pad = fixed_pad(self._kernel, self._stride)

    def scales(self) -> tuple[Tensor, Tensor]:
        """Return what input and weights are multiplied with."""
        return self.scale, self.weight_scale

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, shape ``(batch, in_channels, h, w)`` to ``(batch, out_channels, h', w')``."""
        x = round_trip(x, self.scale, self.zero_point)
        if self._same:
            # After rounding: an engine then makes it part of the convolution, for 0 is a value of its inputs.
            x = functional.pad(x, self._pad) if self._pad else pad_same(x, self._kernel, self._stride, self._dilation)
        weight = dequantise(self.weight, self.weight_scale)
        return functional.conv2d(x, weight, self.bias, self._stride, self._padding, self._dilation, self._groups)


def fixed_pad(kernel: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Return 'same' padding of sides that are multiples of the stride: left, right, top and bottom."""
    pads = [kernel[axis] - stride[axis] for axis in (1, 0)]
    return tuple(part for pad in pads for part in (pad // 2, pad - pad // 2))


def is_quantised(network: nn.Module) -> bool:
    """Say whether a network's convolutions are of 8 bits."""
    return any(isinstance(module, QuantisedConv) for module in network.modules())


def lay_out(backbone: Any) -> None:
    """Put `QuantisedConv` in the place of each convolution and its batch norm, in place; load its numbers next.

    Raises:
        ValueError: The network has other convolutions than those of timm's EfficientNets.
    """
    for parent, conv, norm in _pairs(backbone):
        setattr(parent, conv, QuantisedConv(getattr(parent, conv)))
        setattr(parent, norm, getattr(parent, norm).act)


@torch.no_grad()
def quantise(backbone: Any, run: Iterable[Any]) -> None:
    """Round a backbone to 8 bits, in place, for the values that it meets.

    Args:
        backbone: Of timm's EfficientNets, in evaluation mode.
        run: Each step runs the backbone on some pictures.

    Raises:
        ValueError: See `lay_out`.
    """
    folded = {}
    for parent, conv, norm in _pairs(backbone):
        convolution, batch_norm = getattr(parent, conv), getattr(parent, norm)
        folded[convolution] = (parent, conv, norm, *_folded(convolution, batch_norm))
    ranges = _ranges(folded, run)
    for convolution, (parent, conv, norm, weight, bias) in folded.items():
        rounded = QuantisedConv(convolution)
        rounded.set(weight, bias, *ranges[convolution])
        setattr(parent, conv, rounded)
        setattr(parent, norm, getattr(parent, norm).act)


@torch.no_grad()
def spread_anew(backbone: Any, run: Iterable[Any]) -> None:
    """Spread the input values of a backbone of 8 bits over what it meets, in place; its weights stay.

    Args:
        backbone: With `QuantisedConv`, in evaluation mode.
        run: Each step runs the backbone on some pictures.
    """
    convolutions = [module for module in backbone.modules() if isinstance(module, QuantisedConv)]
    for convolution, seen in _ranges(convolutions, run).items():
        convolution.spread(*seen)


def _ranges(modules: Iterable[_Module], run: Iterable[Any]) -> dict[_Module, tuple[float, float]]:
    """Return the least and largest value that each module takes; 0 is always among them."""
    watches = {module: _Watch() for module in modules}
    hooks = [module.register_forward_pre_hook(watch) for module, watch in watches.items()]
    for _ in run:
        pass
    for hook in hooks:
        hook.remove()
    return {module: (watch.lowest, watch.highest) for module, watch in watches.items()}


class _Watch:
    """Notes the range of what a module takes."""

    def __init__(self) -> None:
        self.lowest = self.highest = 0.0

    def __call__(self, _module: nn.Module, taken: tuple[Tensor]) -> None:
        lowest, highest = torch.aminmax(taken[0])
        self.lowest, self.highest = min(self.lowest, float(lowest)), max(self.highest, float(highest))


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None  # noqa: S101 - only a batch norm without statistics has none
    assert norm.running_var is not None  # noqa: S101 - the same
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return weight.detach(), bias.detach()


def _pairs(backbone: Any) -> Iterator[tuple[Any, str, str]]:
    found = [
        (module, conv, norm)
        for module in backbone.modules()
        for conv, norm in _PAIRS.get(type(module).__name__, {}).items()
    ]
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    if norms != len(found):
        raise ValueError("only the blocks of EfficientNet-B0 to -B7 and their Lite relatives can compute with 8 bits")
    return iter(found)
