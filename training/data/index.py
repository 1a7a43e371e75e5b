"""From a downloaded folder to one table: each cell's file, label, subject, fold, size and hash."""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from rich.progress import track
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from app.core.errors import ImageError
from app.core.imaging import decode
from app.core.naming import CELL_NAME, PICTURE_SUFFIXES
from training.errors import DataError

INDEX_FILE: Final = "cells.parquet"
SCHEMA: Final = pl.Schema(
    {
        "path": pl.String,
        "label": pl.String,
        "subject": pl.String,
        "fold": pl.Int32,
        "width": pl.Int32,
        "height": pl.Int32,
        "sha256": pl.String,
        "duplicate": pl.Boolean,
        "group": pl.String,
    }
)


@dataclass(frozen=True)
class Index:
    """What was found.

    Attributes:
        cells: One row for each readable cell, with the columns of `SCHEMA`; `path` is relative
            to the index file's folder.
        problems: File and reason of each cell that was left out.
    """

    cells: pl.DataFrame
    problems: list[tuple[Path, str]]


def build_index(data: Path, index_file: Path) -> Index:
    """Read every training cell of a C-NMC download.

    The layout is ``fold_<k>/{all,hem}/UID_<subject>_<image>_<cell>_<class>.<suffix>``, anywhere
    under `data`.

    Args:
        data: The download's folder, or one above it.
        index_file: Where the index will be; paths are made relative to its folder.

    Raises:
        DataError: There is no such folder, or no cell in it can be read.
    """
    if not data.is_dir():
        raise DataError(f"{data} is no folder; expected a C-NMC download")
    files = sorted(
        path
        for path in data.rglob("fold_*/*/*")
        if path.suffix.lower() in PICTURE_SUFFIXES and path.parent.name.lower() in {"all", "hem"}
    )
    if not files:
        raise DataError(
            f"{data} holds no fold_<k>/all or fold_<k>/hem folders with pictures; expected a C-NMC download"
        )
    rows: list[dict[str, Any]] = []
    problems: list[tuple[Path, str]] = []
    # Reading, hashing and decoding release the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        results = pool.map(_read, files)
        for path, result in zip(files, track(results, "Reading cells", total=len(files)), strict=True):
            if isinstance(result, str):
                problems.append((path, result))
            else:
                rows.append(result | {"path": os.path.relpath(path, index_file.parent)})
    if not rows:
        raise DataError(f"none of the {len(files)} pictures under {data} can be read; the first: {problems[0][1]}")
    return Index(_with_groups(rows), problems)


def load_index(path: Path) -> pl.DataFrame:
    """Read an index and check its columns.

    Raises:
        DataError: Missing or not an index.
    """
    try:
        cells = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path}: no index can be read; make one with 'leukoscope-train index DATA'") from error
    if cells.schema != SCHEMA:
        raise DataError(f"{path}: columns are not those of an index; make it anew with 'leukoscope-train index DATA'")
    return cells


def _read(path: Path) -> dict[str, Any] | str:
    """Return a cell's row, or why it is left out."""
    name = CELL_NAME.fullmatch(path.stem)
    if name is None:
        return "the name is not UID_<subject>_<image>_<cell>_<class>"
    label = name["label"].upper()
    if label.lower() != path.parent.name.lower():
        return f"the name says {label}, the folder says {path.parent.name}"
    fold = re.fullmatch(r"fold_(\d+)", path.parent.parent.name)
    if fold is None:
        return f"the folder {path.parent.parent.name} is not fold_<number>"
    try:
        data = path.read_bytes()
        image = decode(data)
    except OSError as error:
        return f"can't be read: {error.strerror}"
    except ImageError as error:
        return str(error)
    return {
        "label": label,
        "subject": name["subject"].upper(),
        "fold": int(fold[1]),
        "width": image.width,
        "height": image.height,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _with_groups(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Mark repeated pictures, and join the subjects that share one into a group."""
    cells = pl.DataFrame(
        rows, schema={name: kind for name, kind in SCHEMA.items() if name not in {"duplicate", "group"}}
    )
    cells = cells.with_columns(duplicate=~pl.col("sha256").is_first_distinct())
    subjects = cells["subject"].unique().sort()
    subject = cells["subject"].replace_strict(subjects, list(range(len(subjects)))).to_numpy()
    picture = cells["sha256"].rank("dense").to_numpy().astype(np.int64) - 1 + len(subjects)
    nodes = int(picture.max()) + 1
    graph = coo_array((np.ones(len(cells)), (subject, picture)), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    # A group is named by its first subject.
    first: dict[int, str] = {}
    for index, name in enumerate(subjects):
        first.setdefault(int(component[index]), name)
    group = [first[int(component[index])] for index in subject]
    return cells.with_columns(group=pl.Series(group, dtype=pl.String)).select(list(SCHEMA))
