"""Augmentation keeps shape, range and the black around the cell, and repeats for a seed."""

import numpy as np
import pytest
import torch

from training.data.augment import Augment, draw_flips, flipped, jitter_stain
from training.data.drawn import draw_cell
from training.tables import AugmentConfig

COLOURS: dict[str, float] = {
    "brightness": 0.2,
    "contrast": 0.2,
    "saturation": 0.2,
    "hue": 0.05,
    "stain": 0.1,
    "noise": 0.05,
}
MOVES: dict[str, float] = {"rotate_deg": 90, "shift": 0.2, "shear_deg": 15, "zoom": 0.2, "blur_px": 1.5}
ALL_ON = AugmentConfig.model_validate({"flip": 0.5} | COLOURS | MOVES)


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


def test_autocast_changes_nothing() -> None:
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(Augment(ALL_ON)(cells()))
    assert torch.equal(*found)


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


@pytest.mark.parametrize("name", [*COLOURS, *MOVES])
def test_each_change_has_an_effect(name: str) -> None:
    torch.manual_seed(0)
    images = cells()
    config = AugmentConfig.model_validate({"flip": 0, name: (COLOURS | MOVES)[name]})
    changed = Augment(config)(images)
    assert not torch.allclose(changed, images.float(), atol=1)
    assert not config.flips_only


def test_no_colour_and_no_noise_comes_into_the_black() -> None:
    torch.manual_seed(0)
    images = cells()
    changed = Augment(AugmentConfig.model_validate({"flip": 0} | COLOURS))(images)
    black = images.amax(1, keepdim=True).expand_as(images) == 0
    assert float(changed[black].max()) == 0


@pytest.mark.parametrize(("axes", "variants"), [("horizontal", {0, 1}), ("both", {0, 1, 2, 3})])
def test_pictures_are_mirrored_along_the_axes_that_were_asked_for(axes: str, variants: set[int]) -> None:
    torch.manual_seed(0)
    config = AugmentConfig.model_validate({"flip": 0.5, "flip_axes": axes})
    drawn = draw_flips(400, config, torch.device("cpu"))
    counts = {int(value): int((drawn == value).sum()) for value in set(drawn.tolist())}
    assert set(counts) == variants
    assert min(counts.values()) > 400 / len(variants) / 2
    assert config.flips_only
    images = cells(1).expand(4, -1, -1, -1)
    mirrored = flipped(images, torch.arange(4))
    for variant, dims in enumerate([(), (2,), (1,), (1, 2)]):
        assert torch.equal(mirrored[variant], images[variant].flip(dims))
