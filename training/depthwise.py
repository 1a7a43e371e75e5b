"""Depthwise convolutions on a processor in bfloat16, with their gradients taken in float32.

oneDNN has no fast kernel for the gradients of a depthwise convolution in bfloat16: they take three to
eight times as long as in float32, half of a training step of an EfficientNet.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Pictures whose gradients are taken at once: their copies in float32 stay in the processor's caches.
_CHUNK: Final = 8


class DepthwiseGradients(TorchFunctionMode):
    """While entered, a depthwise convolution under a processor's autocast has its gradients taken in float32.

    Its output is that of the narrower type, as without; other convolutions, and those on a GPU, stay as they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch, or this module's convolution in its place."""
        if func is torch.conv2d and not kwargs and _is_meant(*args):
            return _Depthwise.apply(*args)
        return func(*args, **(kwargs or {}))


def _is_meant(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ARG001  as torch.conv2d has them
    padding: Any = 0,
    dilation: Any = 1,  # noqa: ARG001
    groups: int = 1,
) -> bool:
    return (
        images.device.type == "cpu"
        and groups == images.shape[1] == weight.shape[0] > 1
        and bias is None
        and not isinstance(padding, str)
        and torch.is_autocast_enabled("cpu")
    )


class _Depthwise(torch.autograd.Function):
    """A convolution in autocast's type forwards, in float32 backwards."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: None, *geometry: Any) -> Tensor:
        narrow = torch.get_autocast_dtype("cpu")
        narrowed = images.to(narrow)
        ctx.save_for_backward(narrowed, weight)
        ctx.geometry, ctx.taken = geometry, images.dtype
        return torch.conv2d(narrowed, weight.to(narrow), bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        wide = weight.float()
        to_images = torch.empty_like(images, dtype=ctx.taken)
        to_weight = torch.zeros_like(wide)
        chunks = (tensor.split(_CHUNK) for tensor in (gradients[0], images, to_images))
        for gradient, pictures, out in zip(*chunks, strict=True):
            into, weights = _gradients(gradient.float(), pictures.float(), wide, *ctx.geometry)
            out.copy_(into)
            to_weight += weights
        return to_images, to_weight.to(weight.dtype), *(None for _ in range(1 + len(ctx.geometry)))


def _gradients(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    into, weights, _ = torch.ops.aten.convolution_backward(
        gradient,
        images,
        weight,
        None,
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        False,
        [0, 0],
        groups,
        [True, True, False],
    )
    return into, weights


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
