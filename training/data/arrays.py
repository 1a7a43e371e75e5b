"""Decode every cell once: an array of model inputs, kept on disk and mapped into memory."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from app.core.errors import ImageError
from app.core.imaging import decode, preprocess
from app.core.parts import Preprocessing
from training.data.labels import LABELS
from training.errors import DataError

Made = TypeVar("Made")


def load_inputs(cells: pl.DataFrame, root: Path, spec: Preprocessing, cache: Path) -> NDArray[np.uint8]:
    """Return the preprocessed pictures of an index.

    Args:
        cells: The index; paths are relative to `root`.
        root: The index file's folder.
        spec: From picture to input.
        cache: Folder for the arrays. An array is found again by the pictures' hashes and `spec`.

    Returns:
        Array of shape ``(cells, size_px, size_px, 3)``, 0..255, mapped read-only.

    Raises:
        DataError: A picture is gone, is not the one that was indexed, or can't be decoded.
    """
    geometry = {name: value for name, value in asdict(spec).items() if name not in {"mean", "std", "windows"}}
    key = hashlib.sha256(json.dumps([geometry, cells["sha256"].to_list()]).encode()).hexdigest()[:16]
    file = cache / f"inputs-{spec.size_px}px-{key}.npy"
    if not file.exists():
        _write(file, cells, root, spec)
    inputs: NDArray[np.uint8] = np.load(file, mmap_mode="r")
    return inputs


def read_cells(cells: pl.DataFrame, root: Path, spec: Preprocessing) -> NDArray[np.uint8]:
    """Return the preprocessed pictures of a few cells, without a cache; see `load_inputs`."""
    return np.stack(list(_read_all(root, cells, lambda picture: preprocess(picture, spec))))


def read_pictures(cells: pl.DataFrame, root: Path) -> list[Image.Image]:
    """Return the pictures of a few cells as they are, in mode ``RGB``.

    Raises:
        DataError: As `load_inputs`.
    """
    return list(_read_all(root, cells, lambda picture: picture))


def targets(cells: pl.DataFrame) -> NDArray[np.int64]:
    """Return each cell's class, as its position in `LABELS`."""
    return np.array([LABELS.index(label) for label in cells["label"]], dtype=np.int64)


def _write(file: Path, cells: pl.DataFrame, root: Path, spec: Preprocessing) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".part{os.getpid()}")
    shape = (len(cells), spec.size_px, spec.size_px, 3)
    array = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
    made = _read_all(root, cells, lambda picture: preprocess(picture, spec))
    try:
        for number, picture in enumerate(track(made, "Decoding cells", total=len(cells))):
            array[number] = picture
        array.flush()
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _read_all(root: Path, cells: pl.DataFrame, make: Callable[[Image.Image], Made]) -> Iterable[Made]:
    def read(row: tuple[str, str]) -> Made:
        path = root / row[0]
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != row[1]:
                raise DataError(f"{path} has changed since it was indexed; run 'leukoscope-train index' again")
            return make(decode(data))
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror}") from error
        except ImageError as error:
            raise DataError(f"{path}: {error}") from error

    # Pillow releases the interpreter's lock while it decodes.
    with ThreadPoolExecutor() as pool:
        yield from pool.map(read, zip(cells["path"], cells["sha256"], strict=True))
