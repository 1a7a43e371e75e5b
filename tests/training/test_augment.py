"""Augmentation keeps shape, range and the black around the cell, and repeats for a seed."""

import numpy as np
import pytest
import torch

from training.config import AugmentConfig
from training.data.augment import Augment, jitter_stain
from training.data.drawn import draw_cell

ALL_ON = AugmentConfig(flip=0.5, rotate_deg=180, shift=0.1, zoom=0.1, stain=0.1)


def cells(count: int = 3, side_px: int = 64) -> torch.Tensor:
    pictures = [np.array(draw_cell("ALL", seed, side_px)) for seed in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def test_shape_and_range_stay() -> None:
    torch.manual_seed(0)
    images = cells()
    changed = Augment(ALL_ON)(images)
    assert changed.shape == images.shape
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255.01


def test_without_any_change_pictures_are_the_same() -> None:
    images = cells()
    torch.testing.assert_close(Augment(AugmentConfig(flip=0))(images), images.float())


def test_the_same_seed_changes_pictures_the_same_and_another_seed_otherwise() -> None:
    def changed(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        result: torch.Tensor = Augment(ALL_ON)(cells())
        return result

    assert torch.equal(changed(0), changed(0))
    assert not torch.equal(changed(0), changed(1))


def test_each_picture_of_a_batch_is_changed_by_itself() -> None:
    torch.manual_seed(0)
    first = cells(1).expand(4, -1, -1, -1)
    changed = Augment(AugmentConfig(flip=0, rotate_deg=180))(first)
    assert not torch.allclose(changed[0], changed[1])


def test_rotation_keeps_the_cells_size() -> None:
    torch.manual_seed(0)
    images = cells()
    turned = Augment(AugmentConfig(flip=0, rotate_deg=180))(images)
    area, before = (turned.amax(1) > 40).sum((1, 2)), (images.amax(1) > 40).sum((1, 2))
    torch.testing.assert_close(area / before, torch.ones(3), atol=0.06, rtol=0)


def test_stain_jitter_leaves_black_black_and_changes_the_cell() -> None:
    torch.manual_seed(0)
    images = cells().float() / 255
    changed = jitter_stain(images, 0.2)
    black = images.amax(1, keepdim=True).expand_as(images) <= 1 / 255
    assert torch.equal(changed[black], images[black])
    assert not torch.allclose(changed[~black], images[~black], atol=0.01)


def test_stain_jitter_of_no_width_changes_nothing_but_rounding() -> None:
    images = cells().float() / 255
    torch.testing.assert_close(jitter_stain(images, 0.0), images, atol=0.005, rtol=0)


@pytest.mark.parametrize("name", ["rotate_deg", "shift", "zoom", "stain"])
def test_each_change_has_an_effect(name: str) -> None:
    torch.manual_seed(0)
    value = {"rotate_deg": 90.0}.get(name, 0.2)
    images = cells()
    changed = Augment(AugmentConfig.model_validate({"flip": 0, name: value}))(images)
    assert not torch.allclose(changed, images.float(), atol=1)
