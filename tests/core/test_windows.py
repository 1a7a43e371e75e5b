"""Windows: each holds all that is not black, is the smallest that does, and depends on its picture alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.core.parts import Preprocessing, Windows
from app.core.windows import BLACK, Window, cut, find_window, patches, put_back, see_windows

SIZE = 64
WINDOWS = Windows(sides_px=(16, 32), step_px=8)
SPEC = Preprocessing(crop_px=None, size_px=SIZE, resample="nearest", mean=(0.0,) * 3, std=(1.0,) * 3, windows=WINDOWS)


def picture(top: int, left: int, bottom: int, right: int, value: int = 200) -> NDArray[np.uint8]:
    """A rectangle on black; only its green is bright."""
    made = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    made[top:bottom, left:right, 1] = value
    return made


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((0, 0, 1, 1), Window(0, 0, 16)),
        ((63, 63, 64, 64), Window(48, 48, 16)),
        ((20, 20, 30, 30), Window(16, 16, 16)),
        ((20, 20, 33, 30), Window(16, 8, 32)),  # three steps high: 32 is the next side
        ((24, 24, 40, 40), Window(24, 24, 16)),
        ((10, 30, 50, 34), Window(0, 0, 64)),  # six steps high: only the whole picture holds it
        ((0, 16, 64, 48), Window(0, 0, 64)),
    ],
)
def test_the_smallest_window_is_found(box: tuple[int, int, int, int], window: Window) -> None:
    assert find_window(picture(*box), WINDOWS) == window


def test_what_is_hardly_brighter_than_black_is_black() -> None:
    noisy = np.maximum(picture(0, 0, 64, 64, BLACK), picture(20, 20, 30, 30, BLACK + 1))
    assert find_window(noisy, WINDOWS) == Window(16, 16, 16)


@pytest.mark.parametrize("value", [0, BLACK])
def test_a_black_picture_is_looked_at_as_a_whole(value: int) -> None:
    assert find_window(picture(0, 0, 64, 64, value), WINDOWS) == Window(0, 0, 64)


sides = st.integers(0, SIZE - 1)


@given(sides, sides, sides, sides)
def test_a_window_holds_the_cell_and_lies_in_the_picture(a: int, b: int, c: int, d: int) -> None:
    top, bottom, left, right = min(a, b), max(a, b) + 1, min(c, d), max(c, d) + 1
    window = find_window(picture(top, left, bottom, right), WINDOWS)
    assert window.top <= top
    assert window.left <= left
    assert bottom <= window.top + window.side <= SIZE
    assert right <= window.left + window.side <= SIZE
    assert window.side in SPEC.sides_px
    assert window.top % WINDOWS.step_px == window.left % WINDOWS.step_px == 0


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=9))
def test_every_picture_is_seen_once_and_answers_come_in_order(corners: list[tuple[int, int]]) -> None:
    images = np.stack([picture(row, column, row + 9, column + 9) for row, column in corners])
    images[:, 0, 0, 2] = np.arange(len(images))  # at most 8: black
    seen = see_windows(
        images, SPEC, lambda patch: [patch.rows.astype(np.float32), patch.pixels.sum(axis=(1, 2, 3), dtype=np.int64)]
    )
    np.testing.assert_array_equal(seen[0], np.arange(len(images)))
    lit = [(image[:, :, 1].sum(dtype=np.int64)) for image in images]
    np.testing.assert_array_equal(seen[1] // 200 * 200, lit)


def test_without_windows_there_is_one_patch_of_whole_pictures() -> None:
    spec = Preprocessing(crop_px=None, size_px=SIZE, resample="nearest", mean=(0.0,) * 3, std=(1.0,) * 3)
    images = np.stack([picture(0, 0, 4, 4), picture(30, 30, 40, 40)])
    (patch,) = patches(images, spec)
    assert patch.pixels is images
    assert patch.windows == [Window(0, 0, SIZE)] * 2
    assert spec.sides_px == (SIZE,)


@pytest.mark.parametrize("place_px", [2, 8])
def test_maps_are_put_back_where_the_window_was(place_px: int) -> None:
    images = np.stack([picture(20, 36, 30, 44), picture(40, 2, 47, 9), picture(10, 30, 50, 34)])
    for patch in patches(images, SPEC):
        side = patch.windows[0].side
        maps = patch.pixels[:, ::place_px, ::place_px, 1].astype(np.float32)
        laid = put_back(maps, patch, SIZE)
        assert laid.shape == (len(maps), SIZE // place_px, SIZE // place_px)
        for row, window, one in zip(patch.rows, patch.windows, laid, strict=True):
            np.testing.assert_array_equal(one, images[row, ::place_px, ::place_px, 1])
            assert cut(images[row], window).shape == (side, side, 3)
