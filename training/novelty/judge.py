"""How well a novelty score tells what is no cell: drawn pictures, and the figures of a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from app.core.parts import Preprocessing
from training.data.arrays import read_pictures
from training.data.dataset import Data
from training.data.splits import Rows
from training.novelty.kinds import KINDS, draw_kind
from training.novelty.score import METHOD, choose_threshold

PICTURES_OF_A_KIND: Final = 24
_COMPOSED_OF: Final = 40
_SEED: Final = 0

Pictures = dict[str, NDArray[np.uint8]]
Scores = NDArray[np.float32]


def draw_pictures(data: Data, root: Path, spec: Preprocessing, count: int) -> Pictures:
    """Draw pictures of every kind; composed ones show validation cells for choosing, test cells for testing.

    Without a test part, every other validation cell stands for it.

    Args:
        data: The run's data.
        root: The index file's folder.
        spec: The model's preprocessing.
        count: Pictures of each kind.

    Returns:
        For the name of each kind, shape ``(count, size_px, size_px, 3)``.

    Raises:
        DataError: A cell can't be read.
    """
    validation, test = data.split.validation, data.split.test
    rows = {"choosing": validation, "testing": test}
    if len(test) == 0:
        rows = {"choosing": validation[::2], "testing": validation[1::2]}
    cells = {use: read_pictures(data.cells[_spread(mine, _COMPOSED_OF)], root) for use, mine in rows.items()}
    return {
        kind.name: draw_kind(kind, cells[kind.use], count, spec, seed=_SEED)
        for kind in track(KINDS, "Drawing what is no cell")
    }


def judge(cells: Scores, pictures: Mapping[str, Scores]) -> dict[str, Any]:
    """Choose the threshold, and measure what it flags.

    Args:
        cells: Scores of the validation cells.
        pictures: Of the drawn pictures, by the name of their kind.

    Returns:
        What a report says of novelty, but for the test part (`describe_flagged`). Validation cells and
        the kinds for choosing have chosen the threshold; the other kinds have not.
    """
    chosen_by = np.concatenate([pictures[kind.name] for kind in KINDS if kind.use == "choosing"])
    threshold = choose_threshold(cells, chosen_by)
    kinds = [
        {
            "kind": kind.name,
            "use": kind.use,
            "no_cell": kind.no_cell,
            "pictures": len(pictures[kind.name]),
            "flagged": _share(pictures[kind.name], threshold),
        }
        for kind in KINDS
    ]
    return {
        "method": METHOD,
        "threshold": threshold,
        "no_cells_flagged": {
            use: float(np.mean([kind["flagged"] for kind in kinds if kind["no_cell"] and kind["use"] == use]))
            for use in ("choosing", "testing")
        },
        "kinds": kinds,
        "cells_flagged": {"validation": _share(cells, threshold)},
    }


def describe_flagged(judged: dict[str, Any], flagged: NDArray[np.bool_], subjects: NDArray[np.str_]) -> dict[str, Any]:
    """Add what is flagged of the test part to what `judge` gave.

    Args:
        judged: Of `judge`.
        flagged: Whether each test cell is.
        subjects: Of each test cell.
    """
    return judged | {
        "cells_flagged": judged["cells_flagged"] | {"test": float(flagged.mean())},
        "subjects": {str(name): float(flagged[subjects == name].mean()) for name in np.unique(subjects)},
    }


def _share(scores: Scores, threshold: float) -> float:
    return float((scores > threshold).mean())


def _spread(rows: Rows, count: int) -> Rows:
    """Choose some rows, evenly over them."""
    return rows[:: max(1, len(rows) // count)][:count]
