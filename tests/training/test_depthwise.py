"""Depthwise convolutions under a processor's autocast: the same answers, gradients that are no worse."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.depthwise import DepthwiseGradients

CHANNELS = 12
Learnt = tuple[Tensor, Tensor, Tensor]


@contextmanager
def autocast(enabled: bool) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        yield


def learn(images: Tensor, weight: Tensor, *geometry: Any, narrow: bool = True, mode: bool = True) -> Learnt:
    """Output, and the gradients of pictures and weight, of a loss in which every place counts otherwise."""
    images, weight = images.clone().requires_grad_(), weight.clone().requires_grad_()
    with autocast(narrow), DepthwiseGradients() if mode else nullcontext():
        output = functional.conv2d(images, weight, None, *geometry)
    torch.autograd.backward(output.float().sin().sum())
    assert images.grad is not None
    assert weight.grad is not None
    return output.detach(), images.grad, weight.grad


def error(of: Tensor, truth: Tensor) -> float:
    return float((of.float() - truth).norm() / truth.norm())


# One picture, a chunk, and a chunk with a rest; strides, dilation and what timm and Keras pad.
@pytest.mark.parametrize("batch", [1, 8, 19])
@pytest.mark.parametrize(
    ("kernel", "geometry"),
    [
        (3, (1, 1, 1, CHANNELS)),
        (5, (2, 2, 1, CHANNELS)),
        (3, ((2, 1), (0, 1), 1, CHANNELS)),
        (3, (1, 2, 2, CHANNELS)),
    ],
)
def test_gradients_are_as_near_to_those_of_float32_as_autocast_s_own(
    batch: int, kernel: int, geometry: tuple[Any, ...]
) -> None:
    torch.manual_seed(batch)
    images = torch.randn(batch, CHANNELS, 15, 18).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, 1, kernel, kernel)
    truth = learn(images, weight, *geometry, narrow=False)
    plain = learn(images, weight, *geometry, mode=False)
    ours = learn(images, weight, *geometry)
    assert ours[0].dtype == torch.bfloat16
    assert torch.equal(ours[0], plain[0])
    for mine, its, exact in zip(ours[1:], plain[1:], truth[1:], strict=True):
        assert mine.dtype == exact.dtype
        assert error(mine, exact) < max(1.3 * error(its, exact), 1e-2)


def test_pictures_that_are_narrow_already_get_narrow_gradients() -> None:
    images = torch.randn(3, CHANNELS, 9, 9).bfloat16()
    weight = torch.randn(CHANNELS, 1, 3, 3)
    _, to_images, to_weight = learn(images, weight, 1, 1, 1, CHANNELS)
    assert (to_images.dtype, to_weight.dtype) == (torch.bfloat16, torch.float32)


# Without autocast, and where it is no depthwise convolution.
@pytest.mark.parametrize(
    ("groups", "narrow"), [(CHANNELS, False), (1, True), (2, True)], ids=["float32", "dense", "grouped"]
)
def test_all_else_stays_as_it_is(groups: int, narrow: bool) -> None:
    images, weight = torch.randn(9, CHANNELS, 9, 9), torch.randn(CHANNELS, CHANNELS // groups, 3, 3)
    with_it, without = (learn(images, weight, 1, 1, 1, groups, narrow=narrow, mode=mode) for mode in (True, False))
    assert all(torch.equal(mine, its) for mine, its in zip(with_it, without, strict=True))


def test_frozen_weights_get_no_gradient() -> None:
    images = torch.randn(2, CHANNELS, 9, 9, requires_grad=True)
    weight = torch.randn(CHANNELS, 1, 3, 3)
    with autocast(True), DepthwiseGradients():
        output = functional.conv2d(images, weight, None, 1, 1, 1, CHANNELS)
    torch.autograd.backward(output.float().sum())
    assert images.grad is not None
    assert weight.grad is None
