"""How well a novelty score tells what is no cell: drawn pictures, and the figures of a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from app.core.spec import Preprocessing
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
    rows = {"choosing": data.split.validation, "testing": data.split.test}
    cells = {use: read_pictures(data.cells[_spread(mine, _COMPOSED_OF)], root) for use, mine in rows.items()}
    return {
        kind.name: draw_kind(kind, cells[kind.use], count, spec, seed=_SEED)
        for kind in track(KINDS, "Drawing what is no cell")
    }


def judge(scores: Mapping[str, Scores], pictures: Mapping[str, Scores], data: Data) -> dict[str, Any]:
    """Choose the threshold, and measure what it flags.

    Args:
        scores: Of the cells of ``validation`` and ``test``, in the split's order.
        pictures: Of the drawn pictures, by the name of their kind.
        data: The run's data.

    Returns:
        What a report says of novelty. Validation cells and the kinds for choosing have chosen the threshold;
        test cells and the other kinds have not.
    """
    chosen_by = np.concatenate([pictures[kind.name] for kind in KINDS if kind.use == "choosing"])
    threshold = choose_threshold(scores["validation"], chosen_by)
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
    test = data.subjects[data.split.test]
    return {
        "method": METHOD,
        "threshold": threshold,
        "cells_flagged": {part: _share(values, threshold) for part, values in scores.items()},
        "no_cells_flagged": {
            use: float(np.mean([kind["flagged"] for kind in kinds if kind["no_cell"] and kind["use"] == use]))
            for use in ("choosing", "testing")
        },
        "kinds": kinds,
        "subjects": {str(name): _share(scores["test"][test == name], threshold) for name in np.unique(test)},
    }


def _share(scores: Scores, threshold: float) -> float:
    return float((scores > threshold).mean())


def _spread(rows: Rows, count: int) -> Rows:
    """Choose some rows, evenly over them."""
    return rows[:: max(1, len(rows) // count)][:count]
