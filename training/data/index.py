"""From a downloaded folder to one table: each cell's file, label, subject, fold, size and hash."""

import hashlib
import os
from collections import Counter
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
from training.data.layouts import Fault, Place, find_places
from training.errors import DataError

INDEX_FILE: Final = "cells.parquet"
SCHEMA: Final = pl.Schema(
    {
        "path": pl.String,  # relative to the index file's folder
        "source": pl.String,  # training, preliminary, final or own
        "label": pl.String,  # null where it was never published
        "subject": pl.String,  # null where nothing says it
        "fold": pl.Int32,  # null outside the training part
        "width": pl.Int32,
        "height": pl.Int32,
        "bytes": pl.Int64,
        "modified_ns": pl.Int64,
        "sha256": pl.String,  # of the file
        "pixels": pl.String,  # hash of the decoded picture
        "duplicate_group": pl.Int32,  # the same number for the same pixels
        "duplicate": pl.Boolean,  # not the first of its duplicate group
        "group": pl.String,  # subjects that share a picture; null without a subject
    }
)
_READ: Final = ("width", "height", "bytes", "modified_ns", "sha256", "pixels")
_PUBLISHED_CELLS: Final = {0: 3527, 1: 3581, 2: 3553}


@dataclass(frozen=True)
class Index:
    """What was found.

    Attributes:
        cells: One row for each readable cell, with the columns of `SCHEMA`.
        faults: What is not as it should be; see `Fault` for what was left out.
        reused: Cells whose row was taken from an earlier index, unread.
    """

    cells: pl.DataFrame
    faults: list[Fault]
    reused: int = 0


def build_index(data: Path, index_file: Path) -> Index:
    """Read every cell of a C-NMC download, or of folders ``all`` and ``hem`` (`training.data.layouts`).

    Args:
        data: The folder, or one above it.
        index_file: Where the index will be; paths are made relative to its folder. If one is there,
            files of the same path, size and time are not read again.

    Raises:
        DataError: There is no such folder, or no cell in it can be read.
    """
    if not data.is_dir():
        raise DataError(f"{data} is no folder; expected a C-NMC download or folders all/ and hem/")
    places, faults = find_places(data)
    if not places and not faults:
        raise DataError(f"{data} holds no pictures in folders all/ and hem/; expected a C-NMC download or such folders")
    known = _known(index_file)
    rows: list[dict[str, Any]] = []
    # Reading, hashing and decoding release the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda place: _read(place, index_file.parent, known), places)
        for place, result in zip(places, track(results, "Reading cells", total=len(places)), strict=True):
            if isinstance(result, Fault):
                faults.append(result)
            else:
                kept = {"source": place.source, "label": place.label, "subject": place.subject, "fold": place.fold}
                rows.append(result | kept)
    if not rows:
        first = f"; the first: {faults[0].path.name}: {faults[0].reason}" if faults else ""
        raise DataError(f"none of the pictures under {data} can be used{first}")
    cells = with_groups(rows)
    faults += [
        *_odd_sizes(cells, index_file.parent),
        *_duplicates(cells, index_file.parent),
        *_contradictions(cells, index_file.parent),
        *_of_both_classes(cells, index_file.parent),
        *_short_folds(cells, data),
    ]
    return Index(cells, faults, reused=sum(row["path"] in known and known[row["path"]] == _facts(row) for row in rows))


def write_index(index: Index, file: Path) -> None:
    """Write an index, and beside it ``<name>.faults.csv`` with all that is not as it should be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    index.cells.write_parquet(part)
    part.replace(file)
    rows = [{"kind": fault.kind, "path": str(fault.path), "reason": fault.reason} for fault in index.faults]
    schema = {"kind": pl.String, "path": pl.String, "reason": pl.String}
    pl.DataFrame(rows, schema=schema).write_csv(file.with_suffix(".faults.csv"))


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


def with_groups(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Make the table: number the pictures, mark repeated ones, and join the subjects that share one.

    Args:
        rows: All other columns of `SCHEMA`.
    """
    made = {"duplicate_group", "duplicate", "group"}
    cells = pl.DataFrame(rows, schema={name: kind for name, kind in SCHEMA.items() if name not in made})
    cells = cells.with_columns(
        duplicate_group=pl.col("pixels").rank("dense").cast(pl.Int32) - 1,
        duplicate=~pl.col("pixels").is_first_distinct(),
    )
    named = cells.filter(pl.col("subject").is_not_null())
    groups = _joined(named) if len(named) else {}
    group = [groups.get(subject) for subject in cells["subject"]]
    return cells.with_columns(group=pl.Series(group, dtype=pl.String)).select(list(SCHEMA))


def contradictory() -> pl.Expr:
    """Whether the index has a cell's picture under both labels, so that nothing says which of them is right."""
    return pl.col("label").drop_nulls().n_unique().over("pixels") > 1


def _joined(cells: pl.DataFrame) -> dict[str, str]:
    """Return each subject's group, named by its first subject."""
    subjects = cells["subject"].unique().sort()
    subject = cells["subject"].replace_strict(subjects, list(range(len(subjects)))).to_numpy()
    picture = cells["pixels"].rank("dense").to_numpy().astype(np.int64) - 1 + len(subjects)
    nodes = int(picture.max()) + 1
    graph = coo_array((np.ones(len(cells)), (subject, picture)), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    first: dict[int, str] = {}
    return {name: first.setdefault(int(component[index]), name) for index, name in enumerate(subjects)}


def _known(index_file: Path) -> dict[str, tuple[Any, ...]]:
    """Return what an earlier index knows of each file."""
    if not index_file.is_file():
        return {}
    try:
        earlier = load_index(index_file)
    except DataError:
        return {}
    return {row[0]: row[1:] for row in earlier.select("path", *_READ).iter_rows()}


def _facts(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _READ)


def _read(place: Place, root: Path, known: dict[str, tuple[Any, ...]]) -> dict[str, Any] | Fault:
    """Return a cell's row, or why it is left out."""
    path = os.path.relpath(place.path, root)
    try:
        status = place.path.stat()
        facts = dict(zip(_READ, known.get(path, ()), strict=False))
        if (facts.get("bytes"), facts.get("modified_ns")) == (status.st_size, status.st_mtime_ns):
            return facts | {"path": path}
        data = place.path.read_bytes()
        image = decode(data)
    except OSError as error:
        return Fault("unreadable", place.path, f"can't be read: {error.strerror}")
    except ImageError as error:
        return Fault("unreadable", place.path, str(error))
    return {
        "path": path,
        "width": image.width,
        "height": image.height,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256(data).hexdigest(),
        "pixels": hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%d" % image.width).hexdigest(),
    }


def _odd_sizes(cells: pl.DataFrame, root: Path) -> list[Fault]:
    """Name the cells whose size is not that of most of their source."""
    faults = []
    for _, part in cells.group_by("source", maintain_order=True):
        usual = Counter(part.select("width", "height").iter_rows()).most_common(1)[0][0]
        odd = part.filter((pl.col("width") != usual[0]) | (pl.col("height") != usual[1]))
        faults += [
            Fault("odd size", root / path, f"{width} x {height} px; most are {usual[0]} x {usual[1]}")
            for path, width, height in odd.select("path", "width", "height").iter_rows()
        ]
    return faults


def _duplicates(cells: pl.DataFrame, root: Path) -> list[Fault]:
    first = dict(cells.filter(~pl.col("duplicate")).select("duplicate_group", "path").iter_rows())
    repeats = cells.filter("duplicate").select("path", "duplicate_group").iter_rows()
    return [Fault("duplicated", root / path, f"the same picture as {first[number]}") for path, number in repeats]


def _contradictions(cells: pl.DataFrame, root: Path) -> list[Fault]:
    found = cells.filter(contradictory()).select("path", "label").iter_rows()
    return [
        Fault("two labels", root / path, f"{label} here, but the same picture stands under the other label too")
        for path, label in found
    ]


def _of_both_classes(cells: pl.DataFrame, root: Path) -> list[Fault]:
    """Name the subjects that have cells of both classes: they may be two people with one name."""
    mixed = cells.filter(pl.col("subject").is_not_null() & (pl.col("label").n_unique().over("subject") > 1))
    first = mixed.unique(["subject", "label"], keep="first", maintain_order=True).sort("subject", "label")
    return [
        Fault("two classes", root / path, f"subject {subject} has ALL and HEM cells, and is taken for one person")
        for path, subject in first.filter(label="HEM").select("path", "subject").iter_rows()
    ]


def _short_folds(cells: pl.DataFrame, data: Path) -> list[Fault]:
    """Name official folds that have another number of cells than was published."""
    counts = dict(cells.filter(source="training")["fold"].value_counts().iter_rows())
    return [
        Fault("missing", data / f"fold_{fold}", f"{counts[fold]} cells can be used, {published} were published")
        for fold, published in _PUBLISHED_CELLS.items()
        if fold in counts and counts[fold] != published
    ]
