"""Pictures that show nothing: blanks, noise, gradients, patterns and print."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rng = np.random.Generator

_SIDES_PX: Final = (96, 900)
_TEXT: Final = (
    "Name Date of birth Ward Sample received Leucocytes 11.4 Haemoglobin 7.8 Platelets 42 "
    "Please repeat the count by hand and send a second smear"
)


def blank_grey(rng: Rng) -> Image.Image:
    """Draw one grey from black to white; the ends are as likely as all between."""
    level = int(rng.choice([0, 255, int(rng.integers(1, 255))]))
    return _picture(np.full((*_size(rng), 3), level))


def blank_colour(rng: Rng) -> Image.Image:
    """Draw one colour."""
    return _picture(np.broadcast_to(rng.integers(0, 256, size=3), (*_size(rng), 3)))


def pixel_noise(rng: Rng) -> Image.Image:
    """Draw each pixel for itself, from the whole range."""
    return _picture(rng.integers(0, 256, size=(*_size(rng), 3)))


def grey_noise(rng: Rng) -> Image.Image:
    """Draw normal noise around one grey, the same in all channels."""
    noise = rng.normal(rng.uniform(40, 215), rng.uniform(5, 50), size=(*_size(rng), 1))
    return _picture(np.repeat(noise, 3, axis=2))


def speckles(rng: Rng) -> Image.Image:
    """Draw salt and pepper on one colour."""
    size = _size(rng)
    pixels = np.broadcast_to(rng.integers(0, 256, size=3), (*size, 3)).copy()
    pixels[rng.random(size) < rng.uniform(0.02, 0.3)] = 255
    pixels[rng.random(size) < rng.uniform(0.02, 0.3)] = 0
    return _picture(pixels)


def clouds(rng: Rng) -> Image.Image:
    """Draw smooth noise: a few coarse pixels, enlarged."""
    height, width = _size(rng)
    coarse = rng.integers(0, 256, size=(rng.integers(3, 16), rng.integers(3, 16), 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def gradient(rng: Rng) -> Image.Image:
    """Draw a passage from one colour to another, in any direction."""
    place = _along(rng, _size(rng))[..., None]
    place = (place - place.min()) / np.ptp(place)
    first, last = rng.integers(0, 256, size=(2, 3))
    return _picture(first * (1 - place) + last * place)


def checkers(rng: Rng) -> Image.Image:
    """Draw squares of two colours."""
    rows, columns = np.indices(_size(rng)) // rng.integers(4, 80)
    return _picture(rng.integers(0, 256, size=(2, 3))[(rows + columns) % 2])


def stripes(rng: Rng) -> Image.Image:
    """Draw soft stripes between two colours, in any direction."""
    place = _along(rng, _size(rng))[..., None]
    share = 0.5 + 0.5 * np.sin(2 * np.pi * place / rng.uniform(8, 120))
    first, last = rng.integers(0, 256, size=(2, 3))
    return _picture(first * (1 - share) + last * share)


def shapes(rng: Rng) -> Image.Image:
    """Draw ellipses and boxes of all colours."""
    height, width = _size(rng)
    image = Image.new("RGB", (width, height), _colour(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 20)):
        left, top = rng.integers(-width // 4, width), rng.integers(-height // 4, height)
        box = (left, top, left + rng.integers(8, width), top + rng.integers(8, height))
        draw = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw([int(side) for side in box], fill=_colour(rng))
    return image


def print_on_paper(rng: Rng) -> Image.Image:
    """Draw lines of words, dark on light or light on dark."""
    height, width = _size(rng)
    dark, light = int(rng.integers(0, 80)), int(rng.integers(190, 256))
    paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
    image = Image.new("RGB", (width, height), (paper,) * 3)
    size_px = int(rng.integers(10, 40))
    font = ImageFont.load_default(size_px)
    for top in range(0, height, size_px + 4):
        words = " ".join(rng.choice(_TEXT.split(), size=1 + 2 * width // size_px))
        ImageDraw.Draw(image).text((-int(rng.integers(0, 9)), top), words, fill=(ink,) * 3, font=font)
    return image


def _size(rng: Rng) -> tuple[int, int]:
    height, width = rng.integers(*_SIDES_PX, size=2)
    return int(height), int(width)


def _along(rng: Rng, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return each pixel's distance, in pixels, along a random direction."""
    rows, columns = np.indices(size)
    angle = rng.uniform(0, 2 * np.pi)
    return np.asarray(rows * np.sin(angle) + columns * np.cos(angle))


def _colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, size=3)
    return int(red), int(green), int(blue)


def _picture(pixels: NDArray[np.floating | np.integer]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
