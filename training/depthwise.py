"""Depthwise convolutions on a processor in bfloat16, with gradients that oneDNN computes fast.

Measured with oneDNN 3 on a processor with AVX-512: for the gradient of the pictures in bfloat16 it has no fast
kernel of a stride of two, and of a stride of one none as fast as a convolution's own; for the gradient of the
weight it has fast kernels of 3 x 3 weights in float32 alone, and multiplies sixteen channels by sixteen for others.
Together that was half of a training step of an EfficientNet.
"""

from collections.abc import Iterable
from itertools import product
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

# Of pictures and gradients whose copies in float32 are made at once: they stay in the caches.
_CHUNK_BYTES: Final = 4 * 2**20
_TILE: Final = 3


def is_depthwise(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,  # noqa: ARG001  as torch.conv2d has them
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Say whether a call of ``torch.conv2d`` is one that `Depthwise` can take over.

    It is depthwise, on a processor, without bias and dilation, its kernel at least 3 x 3, and padded by less than that.
    """
    return (
        images.device.type == "cpu"
        and groups == images.shape[1] == weight.shape[0] > 1
        and bias is None
        and not isinstance(padding, str)
        and _pair(dilation) == [1, 1]
        and all(_TILE <= side > pad for side, pad in zip(weight.shape[2:], _pair(padding), strict=True))
    )


class Depthwise(torch.autograd.Function):
    """``torch.conv2d`` for a depthwise convolution, in autocast's type where that is entered."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: None = None, *geometry: Any) -> Tensor:
        """Convolve; see ``torch.conv2d``."""
        narrow = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype
        narrowed = images.to(narrow)
        ctx.save_for_backward(narrowed, weight)
        ctx.taken, ctx.groups = images.dtype, len(weight)
        ctx.stride, ctx.padding = (_pair(value) for value in (*geometry[:2], *(1, 0)[len(geometry) :]))
        return torch.conv2d(narrowed, weight.to(narrow), bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of pictures and weight, in their types."""
        images, weight = ctx.saved_tensors
        to_images = _to_images(ctx, gradients[0], images, weight).to(ctx.taken) if ctx.needs_input_grad[0] else None
        to_weight = _to_weight(ctx, gradients[0], images, weight) if ctx.needs_input_grad[1] else None
        return to_images, to_weight, *(None for _ in ctx.needs_input_grad[2:])


def _to_images(ctx: Any, gradient: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the pictures: where the stride is one, a convolution with the weight turned around."""
    if ctx.stride == [1, 1]:
        turned = weight.to(gradient.dtype).flip(2, 3)
        around = [side - 1 - pad for side, pad in zip(weight.shape[2:], ctx.padding, strict=True)]
        return torch.conv2d(gradient, turned, None, 1, around, 1, ctx.groups)
    wide, to_images = weight.float(), torch.empty_like(images)
    for of_output, pictures, out in _chunks(gradient, images, to_images):
        out.copy_(_gradients(ctx, of_output.float(), pictures, wide, ctx.padding, 0))
    return to_images


def _to_weight(ctx: Any, gradient: Tensor, images: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight, taken in float32, by tiles of 3 x 3 of its places."""
    starts = list(product(*(_tiles(side) for side in weight.shape[2:])))
    sums = weight.new_zeros((len(starts), ctx.groups, 1, _TILE, _TILE), dtype=torch.float32)
    for of_output, pictures in _chunks(gradient, images):
        output = of_output.float()
        views, padding = _seen_by(starts, ctx, pictures.float(), output)
        for total, view in zip(sums, views, strict=True):
            total.add_(_gradients(ctx, output, view, total, padding, 1))
    found = torch.empty_like(weight, dtype=torch.float32)
    for (row, column), total in zip(starts, sums, strict=True):
        found[:, :, row : row + _TILE, column : column + _TILE] = total
    return found.to(weight.dtype)


def _seen_by(
    starts: list[tuple[int, ...]], ctx: Any, pictures: Tensor, output: Tensor
) -> tuple[list[Tensor], list[int]]:
    """What each tile of the weight sees of the pictures, and how that is padded."""
    if len(starts) == 1:
        return [pictures], ctx.padding
    below, beside = ctx.padding
    padded = functional.pad(pictures, (beside, beside, below, below))
    tall, wide = ((places - 1) * step + _TILE for places, step in zip(output.shape[2:], ctx.stride, strict=True))
    return [padded[:, :, row : row + tall, column : column + wide] for row, column in starts], [0, 0]


def _gradients(ctx: Any, gradient: Tensor, images: Tensor, weight: Tensor, padding: list[int], which: int) -> Tensor:
    """PyTorch's gradient of the pictures (0) or of the weight (1)."""
    wanted = [which == 0, which == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, images, weight, None, ctx.stride, padding, [1, 1], False, [0, 0], ctx.groups, wanted
    )[which]
    return found


def _tiles(side: int) -> list[int]:
    """Where tiles begin that together cover a kernel's side; the last may overlap."""
    return sorted({*range(0, side - _TILE + 1, _TILE), side - _TILE})


def _chunks(gradient: Tensor, images: Tensor, *more: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Cut batches into parts that fit into the caches."""
    of_one = 4 * (gradient[0].numel() + images[0].numel())
    pictures = max(1, _CHUNK_BYTES // of_one)
    return zip(*(torch.split(tensor, pictures) for tensor in (gradient, images, *more)), strict=True)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
