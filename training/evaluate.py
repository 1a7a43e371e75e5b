"""Judge a fitted run: predictions, temperature, review band and a report of measured figures."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.core.postprocess import softmax
from app.core.spec import ReviewBand
from training.calibrate import choose_review_band, fit_temperature
from training.data.datamodule import balanced_weights
from training.data.dataset import Data
from training.data.labels import ALL, LABELS
from training.data.splits import Rows
from training.metrics import expected_calibration_error, figures, per_subject, subject_bootstrap
from training.novelty.judge import PICTURES_OF_A_KIND, draw_pictures, judge
from training.novelty.score import Novelty
from training.observer import Observer
from training.page import WorstCell, report_page
from training.run import NOVELTY_FILE, PAGE_FILE, PREDICTIONS_FILE, REPORT_FILE, Run

# Outside the review band, nine answers in ten should be right on validation subjects. More would
# send nearly all cells to a person, as long as single cells of unseen subjects are this hard.
_WANTED_ACCURACY: Final = 0.9
_WORST: Final = 24
# Novelty is fitted on at most so many training cells; more change nothing.
_FITTED_CELLS: Final = 2000


def evaluate(run: Run, *, views: int = 1, pictures: int = PICTURES_OF_A_KIND) -> dict[str, Any]:
    """Judge a run on its validation and test parts, and write its reports and predictions.

    Temperature, review band and the threshold of novelty come from the validation part; the test
    part decides nothing.

    Args:
        run: A fitted run.
        views: Mirrored and turned views of a cell whose logits are averaged: 1, 2, 4 or 8. A model
            is served with one view; the others go to files of their own.
        pictures: How many pictures of each kind that is no cell are drawn, to judge novelty by.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        TrainingError: The run has not been fitted, or its data have changed.
    """
    data = run.load_data()
    parts = {"validation": data.split.validation, "test": data.split.test}
    observer = Observer(run)
    seen = {part: observer.see(data.inputs, rows, views=views) for part, rows in parts.items()}
    truth = {part: data.targets[rows] == ALL for part, rows in parts.items()}
    by_part = {part: said.logits for part, said in seen.items()}
    temperature = fit_temperature(by_part["validation"], data.targets[parts["validation"]])
    probability = {part: softmax(values, temperature)[:, ALL] for part, values in by_part.items()}
    report = _describe_run(run, views) | {"split": _describe_split(data), "temperature": temperature}
    vectors = {part: said.vectors for part, said in seen.items()}
    report["novelty"], novel = _judge_novelty(run, data, observer, vectors, pictures)
    report |= _judge(run, data, by_part, probability, truth, novel)
    kind = f"-{views}-views" if views > 1 else ""
    _write(run.folder / _with(REPORT_FILE, kind), json.dumps(report, indent=2) + "\n")
    worst = _worst_cells(data, probability["test"], truth["test"])
    log = run.folder / "logs" / "metrics.csv"
    _write(run.folder / _with(PAGE_FILE, kind), report_page(report, probability["test"], truth["test"], worst, log))
    _predictions(data, parts, by_part, probability).write_parquet(run.folder / _with(PREDICTIONS_FILE, kind))
    return report


def _judge_novelty(
    run: Run, data: Data, observer: Observer, vectors: dict[str, NDArray[np.float32]], count: int
) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Fit novelty on training cells and keep it; return its figures, and which test cells it flags."""
    train = data.split.train[:: max(1, -(-len(data.split.train) // _FITTED_CELLS))]
    weights = balanced_weights(data.targets[train], data.groups[train])
    novelty = Novelty.fit(observer.see(data.inputs, train).vectors, weights)
    novelty.save(run.folder / NOVELTY_FILE)
    drawn = draw_pictures(data, run.index().parent, run.config().input.spec(), count)
    of_cells = {part: novelty.score(values) for part, values in vectors.items()}
    of_pictures = {kind: novelty.score(observer.see(images).vectors) for kind, images in drawn.items()}
    judged = judge(of_cells, of_pictures, data)
    return judged, of_cells["test"] > judged["threshold"]


def _judge(
    run: Run,
    data: Data,
    logits: dict[str, NDArray[np.float64]],
    probability: dict[str, NDArray[np.float64]],
    truth: dict[str, NDArray[np.bool_]],
    novel: NDArray[np.bool_],
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
            "review": _describe_review(band, probability["test"], truth["test"], novel),
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
    band: ReviewBand, probability: NDArray[np.float64], truth: NDArray[np.bool_], novel: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Share of cells in the band or too novel, and how right the answers to the others are."""
    outside = ((probability < band.low) | (probability > band.high)) & ~novel
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
