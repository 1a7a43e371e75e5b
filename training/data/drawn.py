"""Drawn cells: stand-ins with the layout of C-NMC, for tests and for each model's golden picture.

They are no data. Nothing about leukemia can be learnt from them.
"""

import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX: Final = 450
_NUCLEUS: Final = {"ALL": (98.0, 52.0, 128.0), "HEM": (122.0, 66.0, 136.0)}
_CYTOPLASM: Final = (176.0, 140.0, 190.0)


def draw_cell(label: str, seed: int, side_px: int = SIDE_PX) -> Image.Image:
    """Draw one segmented cell on black.

    Args:
        label: ``ALL`` or ``HEM``; a blast is drawn larger, with more nucleus.
        seed: The same seed draws the same cell.
        side_px: Side of the square picture, in pixels.

    Returns:
        Picture in mode ``RGB``.
    """
    rng = np.random.default_rng([seed, len(label), ord(label[0])])
    radius = side_px * (rng.uniform(0.22, 0.27) if label == "ALL" else rng.uniform(0.17, 0.22))
    share = rng.uniform(0.86, 0.93) if label == "ALL" else rng.uniform(0.72, 0.86)
    centre = side_px / 2 + rng.uniform(-6, 6, size=2)
    cell = _blob(rng, side_px, centre, radius)
    nucleus = _blob(rng, side_px, centre + rng.uniform(-4, 4, size=2), radius * share) & cell
    pixels = np.zeros((side_px, side_px, 3))
    pixels[cell] = _CYTOPLASM
    pixels[nucleus] = _NUCLEUS[label]
    pixels[cell] += _texture(rng, side_px)[cell][:, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def cell_bytes(label: str, seed: int, file_format: str = "BMP") -> bytes:
    """Draw a cell and encode it as a file of Pillow's `file_format`."""
    buffer = io.BytesIO()
    draw_cell(label, seed).save(buffer, format=file_format)
    return buffer.getvalue()


def write_dataset(root: Path, *, folds: int = 2, subjects: int = 3, cells: int = 4) -> Path:
    """Write drawn cells in the layout of a C-NMC download.

    Args:
        root: Folder to write under.
        folds: Number of training folds.
        subjects: Subjects of each class in each fold.
        cells: Cells of each subject.

    Returns:
        The folder ``C-NMC_Leukemia`` under `root`.
    """
    top = root / "C-NMC_Leukemia"
    for fold in range(folds):
        for label, prefix in (("ALL", ""), ("HEM", "H")):
            folder = top / "training_data" / f"fold_{fold}" / label.lower()
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(fold * subjects + 1, (fold + 1) * subjects + 1):
                for cell in range(1, cells + 1):
                    name = f"UID_{prefix}{number}_{cell}_1_{label.lower()}.bmp"
                    (folder / name).write_bytes(cell_bytes(label, seed=number * 1000 + cell))
    return top


def _blob(rng: np.random.Generator, side_px: int, centre: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    """A disc whose radius waves a little around its edge, as a mask."""
    y, x = np.mgrid[:side_px, :side_px]
    angle = np.arctan2(y - centre[1], x - centre[0])
    edge = np.full(angle.shape, radius)
    for wave in range(2, 6):
        edge += radius * rng.uniform(0, 0.06 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    return np.asarray(np.hypot(x - centre[0], y - centre[1]) < edge)


def _texture(rng: np.random.Generator, side_px: int) -> NDArray[np.float64]:
    """Chromatin-like mottle: coarse noise, enlarged smoothly, with a standard deviation near 12."""
    coarse = Image.fromarray(rng.normal(0, 18, size=(side_px // 9, side_px // 9)).astype(np.float32))
    return np.asarray(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC), dtype=np.float64)
