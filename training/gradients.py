"""Gradients that PyTorch takes slowly on a processor, taken fast; on a GPU all stays as it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from training.depthwise import Depthwise, is_depthwise


class QuickGradients(TorchFunctionMode):
    """While entered, depthwise convolutions under autocast, and means over a feature map's places, have fast gradients.

    What they answer is the same, and so are the gradients but for rounding. In float32 PyTorch's own of depthwise
    convolutions are as fast.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch, or what stands in its place."""
        if func is torch.conv2d and not kwargs and torch.is_autocast_enabled("cpu") and is_depthwise(*args):
            return Depthwise.apply(*args)
        if func is torch.Tensor.mean and _is_over_places(*args, **(kwargs or {})):
            return SpatialMean.apply(args[0], _is_kept(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _is_over_places(images: Tensor, dim: Any = None, keepdim: bool = False, **others: Any) -> bool:  # noqa: ARG001
    return images.device.type == "cpu" and images.ndim == 4 and dim in ((2, 3), [2, 3]) and not others


def _is_kept(images: Tensor, dim: Any, keepdim: bool = False) -> bool:  # noqa: ARG001  as Tensor.mean has them
    return keepdim


class SpatialMean(torch.autograd.Function):
    """The mean over a feature map's places.

    PyTorch writes its gradient out for every place, channels first whatever the map's layout; to add that to a map
    whose channels are last takes four times as long as to add one number to all places of a channel.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, keepdim: bool) -> Tensor:
        """Return the mean, shape ``(batch, channels)`` or ``(batch, channels, 1, 1)``."""
        ctx.shape = images.shape
        return images.mean(dim=(2, 3), keepdim=keepdim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the pictures, which has one value in memory for all places of a channel."""
        places = ctx.shape[2] * ctx.shape[3]
        return (gradients[0].reshape(*ctx.shape[:2], 1, 1) / places).expand(ctx.shape), None
