"""The kinds of pictures that a novelty score is chosen by and tested on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.core.imaging import preprocess
from app.core.parts import Preprocessing
from training.novelty import composed, patterns, photographs
from training.novelty.composed import Cells, Rng
from training.novelty.photographs import photograph

Use = Literal["choosing", "testing"]


@dataclass(frozen=True)
class Kind:
    """A kind of pictures.

    Attributes:
        name: For people.
        use: Whether the threshold may be chosen by it; what is for testing chooses nothing.
        no_cell: Whether it shows no single, segmented cell at all. Else it shows one as no model was
            taught, and how often it is noticed is measured, but not demanded.
        draw: Makes one, of a random generator and some segmented cells.
    """

    name: str
    use: Use
    no_cell: bool
    draw: Callable[[Rng, Cells], Image.Image]


def _plain(draw: Callable[[Rng], Image.Image]) -> Callable[[Rng, Cells], Image.Image]:
    return lambda rng, _: draw(rng)


def _cut_out_photograph(rng: Rng, cells: Cells) -> Image.Image:
    return composed.cut_out(rng, photograph(rng, photographs.FOR_TESTING), cells)


_SMALL = partial(photograph, sources=photographs.FOR_TESTING, small=True)

KINDS: Final = (
    Kind("blank, grey", "choosing", True, _plain(patterns.blank_grey)),
    Kind("noise, each pixel for itself", "choosing", True, _plain(patterns.pixel_noise)),
    Kind("gradient", "choosing", True, _plain(patterns.gradient)),
    Kind("checkers", "choosing", True, _plain(patterns.checkers)),
    Kind("photograph", "choosing", True, _plain(partial(photograph, sources=photographs.FOR_CHOOSING))),
    Kind("smear field", "choosing", True, composed.smear_field),
    Kind("unsegmented cell", "choosing", True, composed.unsegmented),
    Kind("blank, coloured", "testing", True, _plain(patterns.blank_colour)),
    Kind("noise, grey", "testing", True, _plain(patterns.grey_noise)),
    Kind("salt and pepper", "testing", True, _plain(patterns.speckles)),
    Kind("clouds", "testing", True, _plain(patterns.clouds)),
    Kind("stripes", "testing", True, _plain(patterns.stripes)),
    Kind("shapes", "testing", True, _plain(patterns.shapes)),
    Kind("text", "testing", True, _plain(patterns.print_on_paper)),
    Kind("other photographs", "testing", True, _plain(partial(photograph, sources=photographs.FOR_TESTING))),
    Kind("small photograph, framed in black", "testing", True, _plain(_SMALL)),
    Kind("photograph with a cell's outline", "testing", True, _cut_out_photograph),
    Kind("other microscopy", "testing", True, _plain(partial(photograph, sources=photographs.FROM_MICROSCOPES))),
    Kind("smear field of another stain", "testing", True, composed.smear_field_elsewhere),
    Kind("unsegmented cell of another stain", "testing", True, composed.unsegmented_elsewhere),
    Kind("two cells", "testing", False, composed.two_cells),
    Kind("cell cut by the border", "testing", False, composed.cut_by_the_border),
    Kind("cell out of focus", "testing", False, composed.out_of_focus),
    Kind("cell, inverted", "testing", False, composed.inverted),
    Kind("cell, channels swapped", "testing", False, composed.swapped_channels),
    Kind("cell at a third of its size", "testing", False, composed.far_too_small),
    Kind("piece of a cell, enlarged", "testing", False, composed.far_too_large),
)


def draw_kind(kind: Kind, cells: Cells, count: int, spec: Preprocessing, *, seed: int) -> NDArray[np.uint8]:
    """Draw pictures of a kind, as a model sees them.

    Args:
        kind: Which.
        cells: Segmented cells to compose pictures of, in mode ``RGB``.
        count: How many pictures.
        spec: The model's preprocessing.
        seed: The same seed draws the same pictures.

    Returns:
        Shape ``(count, size_px, size_px, 3)``, 0..255.
    """
    rng = np.random.default_rng([seed, *kind.name.encode()])
    return np.stack([preprocess(kind.draw(rng, cells), spec) for _ in range(count)])
