"""A contact sheet: what the model will see of some cells, as they are and under augmentation."""

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from PIL import Image

from training.config import RunConfig
from training.data.arrays import read_cells
from training.data.augment import Augment
from training.data.index import load_index
from training.data.labels import LABELS
from training.errors import DataError

_GAP_PX: Final = 2


def contact_sheet(config: RunConfig, index: Path, file: Path, *, cells: int = 8, views: int = 7) -> None:
    """Write a PNG: each row is a cell, first as preprocessed, then as augmented.

    Args:
        config: Preprocessing, augmentation and seed.
        index: Made by ``leukoscope-train index``.
        file: To write.
        cells: Number of rows; both classes in turn.
        views: Number of augmented pictures of each.

    Raises:
        DataError: The index or a picture can't be read, or no cell has a label.
    """
    chosen = _choose(load_index(index), cells)
    if not len(chosen):
        raise DataError(f"{index} has no labelled cells to show")
    inputs = read_cells(chosen, index.parent, config.input.spec())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    originals = torch.from_numpy(inputs).permute(0, 3, 1, 2).to(device)
    augmented = Augment(config.augment).to(device)(originals.repeat_interleave(views, dim=0))
    seen = augmented.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    grid = np.concatenate([inputs[:, None], seen.reshape(len(inputs), views, *inputs.shape[1:])], axis=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_tiled(grid)).save(file, format="PNG")


def _choose(cells: pl.DataFrame, count: int) -> pl.DataFrame:
    """Take cells of both classes in turn, spread over the index."""
    rows: list[int] = []
    for label in LABELS:
        mine = np.flatnonzero((cells["label"] == label).fill_null(value=False).to_numpy())
        wanted = -(-count // len(LABELS))
        rows += mine[:: max(1, len(mine) // wanted)][:wanted].tolist()
    order = [row for pair in zip(*np.array_split(np.array(rows), len(LABELS)), strict=False) for row in pair]
    return cells[order[:count]]


def _tiled(grid: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay pictures, shape ``(rows, columns, size, size, 3)``, out on grey."""
    gap = ((0, 0), (0, 0), (_GAP_PX, _GAP_PX), (_GAP_PX, _GAP_PX), (0, 0))
    framed = np.pad(grid, gap, constant_values=128)
    rows, columns, height, width, _ = framed.shape
    return np.asarray(framed.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3))
