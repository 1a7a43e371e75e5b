"""Where in a picture the cell is: a square window, so that nobody computes the black around it.

A segmented cell fills less than half of the picture that a model takes. A network of convolutions
takes squares of any size, so it can look at a smaller one that holds the cell. Which one depends on
the picture alone, so an answer does not depend on what else is in a batch. Training and service use
this same code.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.core.parts import Preprocessing, Windows

BLACK: Final = 12
"""A pixel is the cell's if a colour is brighter, of 255. JPEG leaves less than this in the black."""


class Window(NamedTuple):
    """A square of a model's input, in pixels."""

    top: int
    left: int
    side: int


@dataclass(frozen=True, slots=True)
class Patch:
    """Pictures of a batch that have windows of the same size.

    Attributes:
        rows: Which pictures of the batch, rising.
        windows: Of each.
        pixels: What the windows show, shape ``(pictures, side, side, 3)``.
    """

    rows: NDArray[np.intp]
    windows: list[Window]
    pixels: NDArray[np.uint8]


def find_window(image: NDArray[np.uint8], windows: Windows) -> Window:
    """Find the smallest window that holds all that is not black.

    Args:
        image: A model's input, shape ``(size_px, size_px, 3)``, RGB, 0..255.
        windows: Which there are; `size_px` is a multiple of their step.

    Returns:
        The window; the whole picture if nothing smaller will do, or if all is black.
    """
    size = len(image)
    flat = image.reshape(size, 3 * size)
    rows = np.flatnonzero(flat.max(axis=1) > BLACK)
    if not len(rows):
        return Window(0, 0, size)
    columns = np.flatnonzero(flat.max(axis=0) > BLACK) // 3
    step = windows.step_px
    tops = int(rows[0]) // step, int(rows[-1]) // step + 1
    lefts = int(columns[0]) // step, int(columns[-1]) // step + 1
    least = step * max(tops[1] - tops[0], lefts[1] - lefts[0])
    side = next((side for side in windows.sides_px if side >= least), size)
    top, left = (step * _begin(*ends, side // step, size // step) for ends in (tops, lefts))
    return Window(top, left, side)


def _begin(first: int, last: int, steps: int, all_steps: int) -> int:
    """Where so many steps begin that hold those from `first` to before `last` in their middle."""
    return min(max(0, first - (steps - last + first) // 2), all_steps - steps)


def patches(images: NDArray[np.uint8], spec: Preprocessing) -> Iterator[Patch]:
    """Cut a batch into patches of one size each, the smallest first.

    Args:
        images: Shape ``(n, size_px, size_px, 3)``, RGB, 0..255.
        spec: The model's preprocessing; without windows there is one patch of whole pictures.
    """
    if spec.windows is None:
        whole = Window(0, 0, images.shape[1])
        yield Patch(np.arange(len(images)), [whole] * len(images), images)
        return
    found = [find_window(image, spec.windows) for image in images]
    if len(images) == 1:
        yield Patch(np.zeros(1, np.intp), found, np.ascontiguousarray(cut(images[0], found[0]))[None])
        return
    for side in sorted({window.side for window in found}):
        rows = np.flatnonzero([window.side == side for window in found])
        mine = [found[row] for row in rows]
        yield Patch(rows, mine, np.stack([cut(images[row], found[row]) for row in rows]))


def see_windows(
    images: NDArray[np.uint8], spec: Preprocessing, see: Callable[[Patch], Sequence[NDArray[Any]]]
) -> list[NDArray[Any]]:
    """Have a batch looked at window by window.

    Args:
        images: Shape ``(n, size_px, size_px, 3)``, RGB, 0..255; n is 1 or more.
        spec: The model's preprocessing.
        see: Gives some arrays for a patch, each with a row for every picture; of one shape for all patches.

    Returns:
        Each of those arrays with a row for every picture of the batch, in order.
    """
    seen = list(patches(images, spec))
    return in_order(seen, [see(patch) for patch in seen])


def in_order(seen: Sequence[Patch], parts: Sequence[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Put what is said of a batch's patches together.

    Args:
        seen: All patches of a batch.
        parts: Of each patch the same arrays, each with a row for every picture.

    Returns:
        Each of those arrays with a row for every picture of the batch, in order.
    """
    if len(parts) == 1:  # of all pictures, in their order
        return list(parts[0])
    order = np.argsort(np.concatenate([patch.rows for patch in seen]))
    return [np.concatenate(arrays)[order] for arrays in zip(*parts, strict=True)]


def cut(image: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Return what a window shows of a picture."""
    top, left, side = window
    return image[top : top + side, left : left + side]


def put_back(maps: NDArray[np.float32], patch: Patch, size_px: int) -> NDArray[np.float32]:
    """Lay maps of windows into maps of the whole pictures, which are 0 elsewhere.

    Args:
        maps: Of a patch's windows, shape ``(pictures, h, w)``; each place covers as many pixels as a step of the
            windows, or fewer.
        patch: Whose they are.
        size_px: Side of the model's input.

    Returns:
        Shape ``(pictures, h * size_px / side, w * size_px / side)``.
    """
    side = patch.windows[0].side
    if side == size_px:
        return maps
    place_px = side // maps.shape[1]
    places = size_px // place_px
    laid = np.zeros((len(maps), places, places), dtype=maps.dtype)
    for number, (top, left, _) in enumerate(patch.windows):
        row, column = top // place_px, left // place_px
        laid[number, row : row + maps.shape[1], column : column + maps.shape[2]] = maps[number]
    return laid
