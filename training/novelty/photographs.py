"""Photographs that come with scikit-learn and scikit-image, cut and scaled at random."""

from functools import cache
from importlib.resources import as_file, files
from typing import Final

import numpy as np
from PIL import Image, ImageOps

Rng = np.random.Generator

# Free to use; each package says under which terms beside the files.
FOR_CHOOSING: Final = (("sklearn.datasets.images", "china.jpg"), ("sklearn.datasets.images", "flower.jpg"))
FOR_TESTING: Final = tuple(
    ("skimage.data", name)
    for name in ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
)
FROM_MICROSCOPES: Final = tuple(
    ("skimage.data", name) for name in ("ihc.png", "retina.jpg", "cell.png", "microaneurysms.png")
)
_SIDES_PX: Final = (300, 900)
_SMALL_SIDES_PX: Final = (64, 250)


def photograph(rng: Rng, sources: tuple[tuple[str, str], ...], *, small: bool = False) -> Image.Image:
    """Cut a piece out of one of several photographs.

    Args:
        rng: Of the choice.
        sources: Package and file name of each.
        small: Whether the piece shall be smaller than the usual crop, which then adds black around it.

    Returns:
        Mode ``RGB``.
    """
    whole = _load(*sources[int(rng.integers(len(sources)))])
    share = rng.uniform(0.3, 1)
    width, height = round(whole.width * share), round(whole.height * share)
    left, top = (int(rng.integers(room + 1)) for room in (whole.width - width, whole.height - height))
    side = int(rng.integers(*(_SMALL_SIDES_PX if small else _SIDES_PX)))
    piece = whole.resize((side, max(1, side * height // width)), box=(left, top, left + width, top + height))
    return ImageOps.mirror(piece) if rng.random() < 0.5 else piece


@cache
def _load(package: str, name: str) -> Image.Image:
    with as_file(files(package) / name) as path, Image.open(path) as image:
        return image.convert("RGB")
