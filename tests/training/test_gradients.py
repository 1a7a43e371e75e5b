"""Gradients that are taken otherwise than PyTorch takes them: the same answers, gradients that are no worse."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.depthwise import Depthwise, is_depthwise
from training.gradients import QuickGradients
from training.zoo import create

CHANNELS = 12
Learnt = tuple[Tensor, Tensor, Tensor]


@contextmanager
def autocast(enabled: bool) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        yield


def learn(
    images: Tensor,
    weight: Tensor,
    *geometry: Any,
    narrow: bool = True,
    mode: bool = True,
    convolve: Callable[..., Tensor] = functional.conv2d,
) -> Learnt:
    """Output, and the gradients of pictures and weight, of a loss in which every place counts otherwise."""
    images, weight = images.clone().requires_grad_(), weight.clone().requires_grad_()
    with autocast(narrow), QuickGradients() if mode else nullcontext():
        output = convolve(images, weight, None, *geometry)
    torch.autograd.backward(output.float().sin().sum())
    assert images.grad is not None
    assert weight.grad is not None
    return output.detach(), images.grad, weight.grad


def error(of: Tensor, truth: Tensor) -> float:
    return float((of.float() - truth).norm() / truth.norm())


def pictures(batch: int) -> Tensor:
    torch.manual_seed(batch)
    return torch.randn(batch, CHANNELS, 15, 18).contiguous(memory_format=torch.channels_last)


# Kernels of one tile, of tiles that overlap and of tiles that don't; strides; what timm and Keras pad; one that is
# left to PyTorch, for it is dilated.
GEOMETRIES = pytest.mark.parametrize(
    ("kernel", "geometry"),
    [
        ((3, 3), (1, 1, 1, CHANNELS)),
        ((3, 3), ((2, 1), (0, 1), 1, CHANNELS)),
        ((4, 4), (2, 1, 1, CHANNELS)),
        ((5, 5), (1, 2, 1, CHANNELS)),
        ((5, 5), (2, 2, 1, CHANNELS)),
        ((5, 3), (1, (0, 2), 1, CHANNELS)),
        ((6, 7), ((1, 2), (5, 3), 1, CHANNELS)),
        ((3, 3), (1, 2, 2, CHANNELS)),
    ],
    ids=str,
)


@pytest.mark.parametrize("batch", [1, 8, 19])
@GEOMETRIES
def test_gradients_are_as_near_to_those_of_float32_as_autocast_s_own(
    batch: int, kernel: tuple[int, int], geometry: tuple[Any, ...]
) -> None:
    images, weight = pictures(batch), torch.randn(CHANNELS, 1, *kernel)
    truth = learn(images, weight, *geometry, narrow=False, mode=False)
    plain = learn(images, weight, *geometry, mode=False)
    ours = learn(images, weight, *geometry)
    assert ours[0].dtype == torch.bfloat16
    assert torch.equal(ours[0], plain[0])
    for mine, its, exact in zip(ours[1:], plain[1:], truth[1:], strict=True):
        assert mine.dtype == exact.dtype
        assert error(mine, exact) < max(1.3 * error(its, exact), 1e-2)


# Chunks of one picture, of some with a rest, and of all.
@pytest.mark.parametrize("chunk_bytes", [1, 40_000, 2**30])
@GEOMETRIES
def test_in_float32_they_are_the_same_but_for_rounding(
    chunk_bytes: int, kernel: tuple[int, int], geometry: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.depthwise._CHUNK_BYTES", chunk_bytes)
    images, weight = pictures(7), torch.randn(CHANNELS, 1, *kernel)
    assert is_depthwise(images, weight, None, *geometry) == (geometry[2] == 1)
    if geometry[2] != 1:
        return
    plain = learn(images, weight, *geometry, narrow=False, mode=False)
    ours = learn(images, weight, *geometry, narrow=False, mode=False, convolve=Depthwise.apply)
    assert torch.equal(ours[0], plain[0])
    for mine, its in zip(ours[1:], plain[1:], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


def test_pictures_that_are_narrow_already_get_narrow_gradients() -> None:
    images = torch.randn(3, CHANNELS, 9, 9).bfloat16()
    weight = torch.randn(CHANNELS, 1, 3, 3)
    _, to_images, to_weight = learn(images, weight, 1, 1, 1, CHANNELS)
    assert (to_images.dtype, to_weight.dtype) == (torch.bfloat16, torch.float32)


# Without autocast, and where it is no depthwise convolution.
@pytest.mark.parametrize(
    ("groups", "narrow"), [(CHANNELS, False), (1, True), (2, True)], ids=["float32", "dense", "grouped"]
)
def test_other_convolutions_stay_as_they_are(groups: int, narrow: bool) -> None:
    images, weight = torch.randn(9, CHANNELS, 9, 9), torch.randn(CHANNELS, CHANNELS // groups, 3, 3)
    with_it, without = (learn(images, weight, 1, 1, 1, groups, narrow=narrow, mode=mode) for mode in (True, False))
    assert all(torch.equal(mine, its) for mine, its in zip(with_it, without, strict=True))


@pytest.mark.parametrize("frozen", ["images", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    images = torch.randn(2, CHANNELS, 9, 9, requires_grad=frozen != "images")
    weight = torch.randn(CHANNELS, 1, 3, 3, requires_grad=frozen != "weight")
    with autocast(True), QuickGradients():
        output = functional.conv2d(images, weight, None, 1, 1, 1, CHANNELS)
    torch.autograd.backward(output.float().sum())
    assert (images.grad is None) == (frozen == "images")
    assert (weight.grad is None) == (frozen == "weight")


MEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "named": lambda images: images.mean(dim=(2, 3)),
    "kept": lambda images: images.mean((2, 3), keepdim=True),
    "by place": lambda images: images.mean([2, 3], True),
    "other dimensions": lambda images: images.mean(dim=(0, 2)),
    "another type": lambda images: images.mean(dim=(2, 3), dtype=torch.float64),
    "all": lambda images: images.mean(),
}


@pytest.mark.parametrize("mean", MEANS)
def test_means_and_their_gradients_are_the_same(mean: str) -> None:
    found = []
    for mode in (QuickGradients(), nullcontext()):
        images = pictures(5).requires_grad_()
        with mode:
            output = MEANS[mean](images)
        torch.autograd.backward((output.sin() + output).sum())
        assert images.grad is not None
        found.append((output.detach(), images.grad))
    for mine, its in zip(*found, strict=True):
        assert mine.dtype == its.dtype
        assert torch.equal(mine, its)


def test_an_efficientnet_learns_by_them() -> None:
    network = create("efficientnet-b0", 32)
    with autocast(True), QuickGradients():
        logits = network(torch.rand(2, 3, 32, 32))
    steps, waiting = {}, [logits.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in steps:
            steps[step] = step.name()
            waiting += [before for before, _ in step.next_functions]
    names = Counter(steps.values())
    # Sixteen blocks with a depthwise convolution and a squeeze each, and the pooling before the head.
    assert names["DepthwiseBackward"] == 16
    assert names["SpatialMeanBackward"] == 17
    assert names["MeanBackward1"] == 0
