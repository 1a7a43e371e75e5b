"""Pictures made of real, segmented cells that are no segmented cell any more."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter, ImageOps

Rng = np.random.Generator
Cells = Sequence[Image.Image]
Palette = tuple[tuple[int, int, int], tuple[int, int, int]]
"""Colours of the empty slide and of a red cell."""

_PALETTES: Final[tuple[Palette, ...]] = (
    ((231, 222, 224), (206, 166, 172)),
    ((222, 214, 226), (190, 160, 186)),
    ((236, 230, 214), (214, 172, 150)),
)
_OTHER_PALETTES: Final[tuple[Palette, ...]] = (
    ((205, 222, 226), (166, 176, 170)),
    ((242, 242, 242), (228, 190, 196)),
    ((196, 186, 182), (160, 122, 122)),
)


def cell(rng: Rng, cells: Cells) -> Image.Image:
    """Take one of the cells, cut out on black."""
    return cells[int(rng.integers(len(cells)))]


def unsegmented(rng: Rng, cells: Cells, palettes: Sequence[Palette] = _PALETTES) -> Image.Image:
    """Put a cell on a pale slide among red cells, which may stand behind it, and sometimes another cell near it."""
    chosen = cell(rng, cells)
    slide, red = _jittered(rng, palettes)
    image = _slide(rng, chosen.size, slide)
    radius = 0.3 * _diameter(chosen)
    for _ in range(rng.integers(2, 9)):
        image = _with_red_cell(rng, image, red, radius)
    if rng.random() < 0.3:
        shift = 0.8 * _diameter(chosen) * _direction(rng)
        image = _pasted(image, cell(rng, cells), int(shift[0]), int(shift[1]))
    return _pasted(image, chosen, 0, 0)


def unsegmented_elsewhere(rng: Rng, cells: Cells) -> Image.Image:
    """Do the same as a camera of another laboratory would: other colours, a little out of focus, compressed."""
    image = unsegmented(rng, cells, _OTHER_PALETTES)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))


def smear_field(rng: Rng, cells: Cells, palettes: Sequence[Palette] = _PALETTES) -> Image.Image:
    """Draw a field of a smear: many red cells and several white ones, as a camera at lower power sees it."""
    size = (int(rng.integers(640, 1300)), int(rng.integers(480, 1000)))
    scale = rng.uniform(0.25, 0.8)
    slide, red = _jittered(rng, palettes)
    image = _slide(rng, size, slide)
    radius = 0.3 * scale * float(np.median([_diameter(one) for one in cells[:8]]))
    crowd = 0.3 * size[0] * size[1] / (np.pi * radius**2)
    for _ in range(int(crowd * rng.uniform(0.3, 1))):
        image = _with_red_cell(rng, image, red, radius)
    for _ in range(rng.integers(4, 13)):
        turned = _scaled(cell(rng, cells), scale).rotate(rng.uniform(0, 360))
        shift = rng.uniform(-0.5, 0.5, size=2) * size
        image = _pasted(image, turned, int(shift[0]), int(shift[1]))
    return image


def smear_field_elsewhere(rng: Rng, cells: Cells) -> Image.Image:
    """Do the same with the colours of other laboratories."""
    return smear_field(rng, cells, _OTHER_PALETTES)


def two_cells(rng: Rng, cells: Cells) -> Image.Image:
    """Put two cells beside each other, on black."""
    first, second = cell(rng, cells), cell(rng, cells)
    shift = 0.25 * (_diameter(first) + _diameter(second)) * _direction(rng)
    black = Image.new("RGB", first.size)
    left = _pasted(black, first, int(shift[0]), int(shift[1]))
    return _pasted(left, second, -int(shift[0]), -int(shift[1]))


def cut_by_the_border(rng: Rng, cells: Cells) -> Image.Image:
    """Shift a cell so that the border takes a third to two thirds of it."""
    chosen = cell(rng, cells)
    away = 160 + _diameter(chosen) * rng.uniform(-0.17, 0.17)  # half of the usual crop of 320 px
    angle = int(rng.integers(4)) * np.pi / 2
    return ImageChops.offset(chosen, int(away * np.cos(angle)), int(away * np.sin(angle)))


def out_of_focus(rng: Rng, cells: Cells) -> Image.Image:
    """Blur a cell until no structure is left."""
    return cell(rng, cells).filter(ImageFilter.GaussianBlur(rng.uniform(10, 25)))


def inverted(rng: Rng, cells: Cells) -> Image.Image:
    """Turn a cell's colours into their negative; the background becomes white."""
    return ImageOps.invert(cell(rng, cells))


def swapped_channels(rng: Rng, cells: Cells) -> Image.Image:
    """Deal a cell's colour channels out in another order."""
    channels = cell(rng, cells).split()
    order = ((2, 1, 0), (1, 0, 2), (1, 2, 0))[int(rng.integers(3))]
    return Image.merge("RGB", [channels[index] for index in order])


def far_too_small(rng: Rng, cells: Cells) -> Image.Image:
    """Show a cell at a third of its size, on black."""
    return _scaled(cell(rng, cells), rng.uniform(0.2, 0.4))


def far_too_large(rng: Rng, cells: Cells) -> Image.Image:
    """Show a piece of a cell, enlarged until it fills the picture."""
    return _scaled(cell(rng, cells), rng.uniform(3, 5))


def cut_out(rng: Rng, picture: Image.Image, cells: Cells) -> Image.Image:
    """Cut a piece of another picture out along a cell's outline, on black."""
    chosen = cell(rng, cells)
    filled = ImageOps.fit(picture, chosen.size)
    return Image.composite(filled, Image.new("RGB", chosen.size), _mask(chosen))


def _mask(chosen: Image.Image) -> Image.Image:
    """Return where the cell is: 255 where a segmented picture is not black."""
    return chosen.convert("L").point(lambda level: 255 if level > 0 else 0)


def _diameter(chosen: Image.Image) -> float:
    """Return the diameter of a disc as large as the cell, in pixels."""
    pixels = int(np.count_nonzero(np.asarray(_mask(chosen))))
    return float(2 * np.sqrt(max(1, pixels) / np.pi))


def _direction(rng: Rng) -> NDArray[np.float64]:
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])


def _jittered(rng: Rng, palettes: Sequence[Palette]) -> NDArray[np.float64]:
    """Return a palette, a little off, shape ``(2, 3)``."""
    return np.asarray(palettes[int(rng.integers(len(palettes)))] + rng.normal(0, 5, size=(2, 3)))


def _slide(rng: Rng, size: tuple[int, int], colour: NDArray[np.float64]) -> Image.Image:
    """Draw an empty slide: uneven light, some noise."""
    coarse = Image.fromarray(rng.normal(0, 4, size=(4, 4)).astype(np.float32))
    light = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))[..., None]
    pixels = colour + light + rng.normal(0, 2, size=(size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _with_red_cell(rng: Rng, image: Image.Image, colour: NDArray[np.float64], radius: float) -> Image.Image:
    """Draw a red cell at a random place: a disc, paler in its middle."""
    radius *= rng.uniform(0.85, 1.15)
    side = int(2 * radius) + 4
    y, x = np.mgrid[:side, :side] - side / 2
    distance = np.hypot(x, y * rng.uniform(0.9, 1.15)) / radius
    pale = 22 * np.exp(-((distance / 0.45) ** 2))[..., None]
    pixels = colour + pale + rng.normal(0, 2, size=(side, side, 3))
    disc = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    edge = Image.fromarray((255 * np.clip((1 - distance) * radius / 2, 0, 1)).astype(np.uint8))
    place = rng.integers(-side // 2, [image.width - side // 2, image.height - side // 2])
    image.paste(disc, (int(place[0]), int(place[1])), edge)
    return image


def _pasted(image: Image.Image, chosen: Image.Image, right: int, down: int) -> Image.Image:
    """Paste a cell, without its background, that far from the picture's middle."""
    image = image.copy()
    corner = ((image.width - chosen.width) // 2 + right, (image.height - chosen.height) // 2 + down)
    image.paste(chosen, corner, _mask(chosen).filter(ImageFilter.GaussianBlur(1)))
    return image


def _scaled(chosen: Image.Image, scale: float) -> Image.Image:
    return chosen.resize((max(1, round(chosen.width * scale)), max(1, round(chosen.height * scale))))
