"""Judge a fitted run: predictions, temperature, review band and a report of measured figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.core.parts import ReviewBand
from app.core.postprocess import softmax
from training.calibrate import choose_review_band, fit_temperature
from training.config import RunConfig
from training.data.datamodule import balanced_weights
from training.data.dataset import Data
from training.data.labels import ALL, LABELS
from training.metrics import expected_calibration_error, figures, per_subject, subject_bootstrap
from training.novelty.judge import PICTURES_OF_A_KIND, describe_flagged, draw_pictures, judge
from training.novelty.score import Novelty
from training.observer import Observer
from training.page import WorstCell, report_page
from training.predictions import answers, flagged, logits, probability, read_test, truth
from training.run import HISTORY_FILE, NOVELTY_FILE, PAGE_FILE, PREDICTIONS_FILE, REPORT_FILE, HeldOut, Run

# Outside the review band, nine answers in ten should be right on validation subjects. More would
# send nearly all cells to a person, as long as single cells of unseen subjects are this hard.
WANTED_ACCURACY: Final = 0.9
# And so many ALL cells answered without review should be called ALL: more than the .95 that is wanted of
# other subjects, for those are harder than the ones that chose the band.
WANTED_SENSITIVITY: Final = 0.97
_WORST: Final = 24
# Novelty is fitted on at most so many training cells; more change nothing.
_FITTED_CELLS: Final = 2000


def evaluate(
    run: Run, *, views: int = 1, pictures: int = PICTURES_OF_A_KIND, judged_by: Sequence[Run] = ()
) -> dict[str, Any]:
    """Judge a run on its validation and test parts, and write its reports and predictions.

    Temperature, review band and the threshold of novelty come from the validation part, or, where a
    run learnt from that too, from the subjects that it held out in turn; the test part decides nothing.

    Args:
        run: A fitted run.
        views: Mirrored and turned views of a cell whose logits are averaged: 1, 2, 4 or 8. A model
            is served with one view; the others go to files of their own.
        pictures: How many pictures of each kind that is no cell are drawn, to judge novelty by.
        judged_by: For a run without a test part, evaluated runs of the same recipe, whose test parts
            stand for it.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        TrainingError: The run has not been fitted, its data have changed, or those that judge it are wrong.
    """
    data = run.load_data()
    observer = Observer(run)
    judged, novelty = _judge_novelty(run, data, observer, pictures)
    validation = run.held_out(data) or HeldOut(
        data.split.validation, observer.see(data.inputs, data.split.validation, views=views).logits
    )
    temperature = fit_temperature(validation.logits, data.targets[validation.rows])
    parts = [answers(data, "validation", validation.rows, validation.logits, temperature)]
    if len(data.split.test):
        seen = observer.see(data.inputs, data.split.test, views=views)
        unlike = novelty.score(seen.vectors) / judged["threshold"]
        parts.append(answers(data, "test", data.split.test, seen.logits, temperature, unlike))
    else:
        parts.append(read_test(run, judged_by, temperature))
    told, asked = parts
    report = _describe_run(run, views) | {"temperature": temperature}
    report["split"] = describe_split(data, judged_by, asked)
    report["novelty"] = describe_flagged(judged, flagged(asked), asked["subject"].to_numpy().astype(str))
    report |= judge_tables(told, asked, seed=run.config().seed)
    kind = f"-{views}-views" if views > 1 else ""
    _write(run.folder / _with(REPORT_FILE, kind), json.dumps(report, indent=2) + "\n")
    page = report_page(report, probability(asked), truth(asked), _worst_cells(data, asked), run.folder / HISTORY_FILE)
    _write(run.folder / _with(PAGE_FILE, kind), page)
    pl.concat(parts).write_parquet(run.folder / _with(PREDICTIONS_FILE, kind))
    return report


def _judge_novelty(run: Run, data: Data, observer: Observer, count: int) -> tuple[dict[str, Any], Novelty]:
    """Fit novelty on training cells and keep it; return its figures, and itself."""
    train = data.split.train[:: max(1, -(-len(data.split.train) // _FITTED_CELLS))]
    weights = balanced_weights(data.targets[train], data.groups[train])
    novelty = Novelty.fit(observer.see(data.inputs, train).vectors, weights)
    novelty.save(run.folder / NOVELTY_FILE)
    drawn = draw_pictures(data, run.index().parent, run.config().input.spec(), count)
    of_pictures = {kind: novelty.score(observer.see(images).vectors) for kind, images in drawn.items()}
    of_cells = novelty.score(observer.see(data.inputs, data.split.validation).vectors)
    return judge(of_cells, of_pictures), novelty


def judge_tables(told: pl.DataFrame, asked: pl.DataFrame, seed: int) -> dict[str, Any]:
    """Return all measured figures of both parts, and the review band that the first one chose.

    Args:
        told: Answers that choose the band, as `training.predictions.answers` makes them.
        asked: Answers that are judged.
        seed: Of the bootstrap.
    """
    band = choose_review_band(probability(told), truth(told), WANTED_ACCURACY, WANTED_SENSITIVITY)
    groups = asked["group"].fill_null(asked["path"]).to_numpy().astype(str)
    interval = subject_bootstrap(probability(asked), truth(asked), groups, seed=seed)
    return {
        "review_band": {
            "low": band.low,
            "high": band.high,
            "wanted_accuracy_outside": WANTED_ACCURACY,
            "wanted_sensitivity_outside": WANTED_SENSITIVITY,
        },
        "validation": figures(probability(told), truth(told)),
        "test": figures(probability(asked), truth(asked))
        | {
            "interval_95": interval,
            "ece_without_temperature": expected_calibration_error(softmax(logits(asked))[:, ALL], truth(asked)),
            "review": _describe_review(band, probability(asked), truth(asked), flagged(asked)),
            "subjects": per_subject(probability(asked), truth(asked), asked["subject"].to_numpy().astype(str)),
        },
    }


def _describe_run(run: Run, views: int) -> dict[str, Any]:
    """What tables of several runs say of one."""
    config = run.config()
    log = run.folder / HISTORY_FILE
    logged = int(pl.read_csv(log)["epoch"].max()) + 1 if log.is_file() else None  # type: ignore[arg-type]
    ended = run.ended_after
    return {
        "model": config.name,
        "network": config.model.network,
        "frozen": config.model.freeze,
        "start": {"kind": config.model.start.kind, "licence": config.model.start.licence},
        "input": config.input.model_dump(mode="json"),
        "seed": config.seed,
        "views": views,
        "epochs": ended or logged,
        # Only of a run that was ended by hand: stopping early is a run's own end.
        "planned_epochs": config.fit.epochs if ended and isinstance(config, RunConfig) else None,
    }


def describe_split(data: Data, judged_by: Sequence[Run], asked: pl.DataFrame) -> dict[str, Any]:
    """Return what a report says of a split: its name and hash, and who is in its parts."""
    tables = {part: data.cells[rows] for part, rows in data.split.parts().items()} | {"test": asked}
    counts = {
        part: {
            label: {"cells": len(mine), "subjects": mine["subject"].n_unique()}
            for label in LABELS
            for mine in [cells.filter(pl.col("label") == label)]
        }
        for part, cells in tables.items()
    }
    described = {
        "name": data.split.name,
        "sha256": data.split.sha256(data.cells),
        "leaks": data.split.leaks,
        "parts": counts,
        "test_subjects": sorted(set(asked["subject"].drop_nulls())),
    }
    if judged_by:
        described["judged_by"] = [
            {"run": run.folder.name, "name": split.name, "sha256": split.sha256(other.cells)}
            for run in judged_by
            for other in [run.load_data()]
            for split in [other.split]
        ]
    return described


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


def _worst_cells(data: Data, asked: pl.DataFrame) -> list[WorstCell]:
    """The test cells whose right label got the least probability."""
    right = np.where(truth(asked), probability(asked), 1 - probability(asked))
    chosen = [number for number in np.argsort(right, kind="stable")[:_WORST] if right[number] < 0.5]
    row_of = {path: row for row, path in enumerate(data.cells["path"])}
    return [
        WorstCell(f"{subject}: {label}, P({label}) {right[number]:.3f}", np.array(data.inputs[row_of[path]]))
        for number, (path, subject, label) in zip(
            chosen, asked[chosen].select("path", "subject", "label").iter_rows(), strict=True
        )
    ]


def _with(name: str, kind: str) -> str:
    """Put a word before a file name's suffix."""
    path = Path(name)
    return f"{path.stem}{kind}{path.suffix}"


def _write(file: Path, text: str) -> None:
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
