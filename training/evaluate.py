"""Judge a fitted run: predictions, temperature, review band and a report of measured figures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from app.core.postprocess import softmax
from app.core.spec import ReviewBand
from training.calibrate import choose_review_band, fit_temperature
from training.data.datamodule import CellData
from training.data.dataset import Data
from training.data.labels import ALL, LABELS
from training.data.splits import Rows
from training.metrics import expected_calibration_error, figures, per_subject, subject_bootstrap
from training.module import CellModule
from training.page import WorstCell, report_page
from training.run import PAGE_FILE, PREDICTIONS_FILE, REPORT_FILE, Run

# Outside the review band, nine answers in ten should be right on validation subjects. More would
# send nearly all cells to a person, as long as single cells of unseen subjects are this hard.
_WANTED_ACCURACY: Final = 0.9
_WORST: Final = 24


def evaluate(run: Run, *, views: int = 1) -> dict[str, Any]:
    """Judge a run on its validation and test parts, and write its reports and predictions.

    Temperature and review band come from the validation part; the test part decides nothing.

    Args:
        run: A fitted run.
        views: Mirrored and turned views of a cell whose logits are averaged: 1, 2, 4 or 8. A model
            is served with one view; the others go to files of their own.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        TrainingError: The run has not been fitted, or its data have changed.
    """
    data = run.load_data()
    parts = {"validation": data.split.validation, "test": data.split.test}
    logits = predict(run, data, np.concatenate(list(parts.values())), views)
    truth = {part: data.targets[rows] == ALL for part, rows in parts.items()}
    cut = len(parts["validation"])
    by_part = {"validation": logits[:cut], "test": logits[cut:]}
    temperature = fit_temperature(by_part["validation"], data.targets[parts["validation"]])
    probability = {part: softmax(values, temperature)[:, ALL] for part, values in by_part.items()}
    report = _describe_run(run, views) | {"split": _describe_split(data), "temperature": temperature}
    report |= _judge(run, data, by_part, probability, truth)
    kind = f"-{views}-views" if views > 1 else ""
    _write(run.folder / _with(REPORT_FILE, kind), json.dumps(report, indent=2) + "\n")
    worst = _worst_cells(data, probability["test"], truth["test"])
    log = run.folder / "logs" / "metrics.csv"
    _write(run.folder / _with(PAGE_FILE, kind), report_page(report, probability["test"], truth["test"], worst, log))
    _predictions(data, parts, by_part, probability).write_parquet(run.folder / _with(PREDICTIONS_FILE, kind))
    return report


def predict(run: Run, data: Data, rows: Rows, views: int = 1) -> NDArray[np.float64]:
    """Return logits in float32 arithmetic, shape ``(rows, 2)``, averaged over views of each cell."""
    config = run.config()
    module = CellModule(run.load_network().to(memory_format=torch.channels_last), config).eval()
    batches = CellData(data, batch_size=config.fit.batch_size).ordered(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    with torch.inference_mode():
        logits = [
            torch.stack([module.predict_logits(view) for view in seen_from(batch.images.to(device), views)])
            .mean(dim=0)
            .cpu()
            .numpy()
            .astype(np.float64)
            for batch in track(batches, "Judging cells")
        ]
    return np.concatenate(logits)


def seen_from(images: Tensor, views: int) -> Iterator[Tensor]:
    """Yield pictures, shape ``(batch, size, size, 3)``, as they are, mirrored, and turned by right angles.

    Raises:
        ValueError: `views` is not 1, 2, 4 or 8.
    """
    if views not in {1, 2, 4, 8}:
        raise ValueError(f"views are 1, 2, 4 or 8, not {views}")
    for view in range(views):
        turned = torch.rot90(images, view // 4, dims=(1, 2))
        mirrored = turned.flip(2) if view % 2 else turned
        yield mirrored.flip(1) if view % 4 >= 2 else mirrored


def _judge(
    run: Run,
    data: Data,
    logits: dict[str, NDArray[np.float64]],
    probability: dict[str, NDArray[np.float64]],
    truth: dict[str, NDArray[np.bool_]],
) -> dict[str, Any]:
    """All measured figures of both parts."""
    rows = data.split.test
    band = choose_review_band(probability["validation"], truth["validation"], _WANTED_ACCURACY)
    interval = subject_bootstrap(probability["test"], truth["test"], data.groups[rows], seed=run.config().seed)
    return {
        "review_band": {"low": band.low, "high": band.high, "wanted_accuracy_outside": _WANTED_ACCURACY},
        "validation": figures(probability["validation"], truth["validation"]),
        "test": figures(probability["test"], truth["test"])
        | {
            "interval_95": interval,
            "ece_without_temperature": expected_calibration_error(softmax(logits["test"])[:, ALL], truth["test"]),
            "review": _describe_review(band, probability["test"], truth["test"]),
            "subjects": per_subject(probability["test"], truth["test"], data.subjects[rows]),
        },
    }


def _describe_run(run: Run, views: int) -> dict[str, Any]:
    """What tables of several runs say of one."""
    config = run.config()
    log = run.folder / "logs" / "metrics.csv"
    return {
        "model": config.name,
        "network": config.model.network,
        "frozen": config.model.freeze,
        "start": {"kind": config.model.start.kind, "licence": config.model.start.licence},
        "input": config.input.model_dump(mode="json"),
        "seed": config.seed,
        "views": views,
        "epochs": int(pl.read_csv(log)["epoch"].max()) + 1 if log.is_file() else None,  # type: ignore[arg-type]
    }


def _describe_split(data: Data) -> dict[str, Any]:
    counts = {}
    for part, rows in data.split.parts().items():
        cells = data.cells[rows]
        counts[part] = {
            label: {
                "cells": int((cells["label"] == label).sum()),
                "subjects": len(set(data.subjects[rows][(cells["label"] == label).to_numpy()])),
            }
            for label in LABELS
        }
    test_subjects = sorted(set(data.subjects[data.split.test].tolist()))
    return {
        "name": data.split.name,
        "sha256": data.split.sha256(data.cells),
        "leaks": data.split.leaks,
        "parts": counts,
        "test_subjects": test_subjects,
    }


def _describe_review(
    band: ReviewBand, probability: NDArray[np.float64], truth: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Share of cells in the band, and how right the answers outside it are."""
    outside = (probability < band.low) | (probability > band.high)
    guess = probability >= 0.5

    def right(mine: NDArray[np.bool_]) -> float | None:
        return float((guess == truth)[mine].mean()) if mine.any() else None

    return {
        "share_sent_to_review": float(1 - outside.mean()),
        "accuracy_outside": right(outside),
        "sensitivity_outside": right(outside & truth),
        "specificity_outside": right(outside & ~truth),
    }


def _worst_cells(data: Data, probability: NDArray[np.float64], truth: NDArray[np.bool_]) -> list[WorstCell]:
    """The test cells whose right label got the least probability."""
    right = np.where(truth, probability, 1 - probability)
    chosen = [number for number in np.argsort(right, kind="stable")[:_WORST] if right[number] < 0.5]
    rows = data.split.test[chosen]
    labels, names = data.cells[rows]["label"], data.subjects[rows]
    return [
        WorstCell(f"{name}: {label}, P({label}) {right[number]:.3f}", np.array(data.inputs[row]))
        for number, row, label, name in zip(chosen, rows, labels, names, strict=True)
    ]


def _predictions(
    data: Data,
    parts: dict[str, Rows],
    logits: dict[str, NDArray[np.float64]],
    probability: dict[str, NDArray[np.float64]],
) -> pl.DataFrame:
    tables = [
        data.cells[rows]
        .select("path", "sha256", "subject", "group", "label")
        .with_columns(
            part=pl.lit(part),
            logit_all=logits[part][:, ALL],
            logit_hem=logits[part][:, 1 - ALL],
            probability_all=probability[part],
        )
        for part, rows in parts.items()
    ]
    return pl.concat(tables)


def _with(name: str, kind: str) -> str:
    """Put a word before a file name's suffix."""
    path = Path(name)
    return f"{path.stem}{kind}{path.suffix}"


def _write(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
