"""The floor that a network must clear: a logistic regression on a cell's area and colours.

Size and brightness tell much of ALL from HEM in this data set, and are partly habits of its subjects.
A network that does not clearly beat this has learnt no more.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from rich.progress import track

from training.config import DataConfig
from training.data.dataset import Data
from training.data.labels import ALL
from training.evaluate import describe_split, judge_tables
from training.predictions import answers
from training.probe import as_logits, examples, held_out, solve
from training.run import FLOOR, REPORT_FILE

# As for a `StagedClassifier`.
_BLACK: Final = 12
_STRENGTH: Final = 1.0
_BATCH: Final = 256


class FloorConfig(DataConfig):
    """The configuration of any run, of which split and input are used."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def area_and_colours(inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Measure each cell.

    Args:
        inputs: Pictures, shape ``(cells, size, size, 3)``, 0..255.

    Returns:
        The cell's share of the picture, and mean and deviation of its three colours; shape ``(cells, 7)``.
    """
    parts = []
    for start in track(range(0, len(inputs), _BATCH), "Measuring cells"):
        pictures = np.asarray(inputs[start : start + _BATCH], dtype=np.float32)
        cell = (pictures.max(axis=3, keepdims=True) > _BLACK).astype(np.float32)
        pixels = cell.sum(axis=(1, 2)).clip(min=1)
        mean = (pictures * cell).sum(axis=(1, 2)) / pixels
        variance = (((pictures - mean[:, None, None]) * cell) ** 2).sum(axis=(1, 2)) / pixels
        parts.append(np.hstack([pixels / cell[0].size, mean, np.sqrt(variance)]))
    return np.concatenate(parts).astype(np.float32)


def judge_floor(config: DataConfig, index: Path, folder: Path) -> dict[str, Any]:
    """Fit the floor on the training and validation parts of a split, and judge it on the test part.

    Args:
        config: Whose split and input are used.
        index: Made by ``leukoscope-train index``.
        folder: Takes the report.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        TrainingError: The data are wrong.
    """
    data = Data.load(index, config, folder.parent / "cache")
    features = area_and_colours(data.inputs)[:, None]
    rows = np.sort(np.concatenate([data.split.train, data.split.validation]))
    held = as_logits(held_out(features, data, rows, config.split, strength=_STRENGTH))
    solved = solve(*examples(features, data.targets[rows] == ALL, rows, np.arange(len(rows))), strength=_STRENGTH)
    test = data.split.test
    said = as_logits(solved.margin(features[test, 0].astype(np.float64)))
    told, asked = answers(data, "validation", rows, held, 1.0), answers(data, "test", test, said, 1.0)
    report = {
        "model": FLOOR,
        "network": "logistic regression on area and colours",
        "frozen": False,
        "start": {"kind": "none", "licence": "none"},
        "input": config.input.model_dump(mode="json"),
        "seed": config.seed,
        "views": 1,
        "epochs": None,
        "temperature": 1.0,
        "split": describe_split(data, (), asked),
    } | judge_tables(told, asked, config.seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report
