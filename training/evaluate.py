"""Judge a fitted run: predictions, temperature, review band and a report of measured figures."""

import json
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.progress import track

from app.core.postprocess import softmax
from app.core.spec import ReviewBand
from training.calibrate import choose_review_band, fit_temperature
from training.data.datamodule import CellData
from training.data.dataset import Data
from training.data.labels import ALL, LABELS
from training.data.splits import Rows
from training.metrics import expected_calibration_error, figures, per_subject, subject_bootstrap
from training.module import CellModule
from training.run import PREDICTIONS_FILE, REPORT_FILE, Run

# Outside the review band, nine answers in ten should be right on validation subjects. More would
# send nearly all cells to a person, as long as single cells of unseen subjects are this hard.
_WANTED_ACCURACY: Final = 0.9


def evaluate(run: Run) -> dict[str, Any]:
    """Judge a run on its validation and test parts, and write its report and predictions.

    Temperature and review band come from the validation part; the test part decides nothing.

    Args:
        run: A fitted run.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        TrainingError: The run has not been fitted, or its data have changed.
    """
    data = run.load_data()
    parts = {"validation": data.split.validation, "test": data.split.test}
    logits = _predict(run, data, np.concatenate(list(parts.values())))
    truth = {part: data.targets[rows] == ALL for part, rows in parts.items()}
    cut = len(parts["validation"])
    by_part = {"validation": logits[:cut], "test": logits[cut:]}
    temperature = fit_temperature(by_part["validation"], data.targets[parts["validation"]])
    probability = {part: softmax(values, temperature)[:, ALL] for part, values in by_part.items()}
    band = choose_review_band(probability["validation"], truth["validation"], _WANTED_ACCURACY)
    report = {
        "model": run.config().name,
        "split": _describe_split(data),
        "temperature": temperature,
        "review_band": {"low": band.low, "high": band.high, "wanted_accuracy_outside": _WANTED_ACCURACY},
        "validation": figures(probability["validation"], truth["validation"]),
        "test": figures(probability["test"], truth["test"])
        | {
            "interval_95": subject_bootstrap(
                probability["test"], truth["test"], data.groups[parts["test"]], seed=run.config().seed
            ),
            "ece_without_temperature": expected_calibration_error(softmax(by_part["test"])[:, ALL], truth["test"]),
            "review": _describe_review(band, probability["test"], truth["test"]),
            "subjects": per_subject(probability["test"], truth["test"], data.subjects[parts["test"]]),
        },
    }
    (run.folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _write_predictions(run, data, parts, by_part, probability)
    return report


def _predict(run: Run, data: Data, rows: Rows) -> NDArray[np.float64]:
    """Logits in float32 arithmetic, shape ``(rows, 2)``."""
    config = run.config()
    module = CellModule(run.load_network().to(memory_format=torch.channels_last), config).eval()
    batches = CellData(data, batch_size=config.fit.batch_size).ordered(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    with torch.inference_mode():
        logits = [
            module.predict_logits(batch.images.to(device)).cpu().numpy().astype(np.float64)
            for batch in track(batches, "Judging cells")
        ]
    return np.concatenate(logits)


def _describe_split(data: Data) -> dict[str, Any]:
    counts = {}
    for part, rows in data.split.parts().items():
        cells = data.cells[rows]
        counts[part] = {
            label: {
                "cells": int((cells["label"] == label).sum()),
                "subjects": cells.filter(pl.col("label") == label)["subject"].n_unique(),
            }
            for label in LABELS
        }
    test_subjects = sorted(data.cells[data.split.test]["subject"].unique())
    return {
        "name": data.split.name,
        "sha256": data.split.sha256(data.cells),
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


def _write_predictions(
    run: Run,
    data: Data,
    parts: dict[str, Rows],
    logits: dict[str, NDArray[np.float64]],
    probability: dict[str, NDArray[np.float64]],
) -> None:
    tables = [
        data.cells[rows]
        .select("path", "sha256", "subject", "label")
        .with_columns(
            part=pl.lit(part),
            logit_all=logits[part][:, ALL],
            logit_hem=logits[part][:, 1 - ALL],
            probability_all=probability[part],
        )
        for part, rows in parts.items()
    ]
    pl.concat(tables).write_parquet(run.folder / PREDICTIONS_FILE)
