"""Figures of a two-class judge, and their intervals by bootstrap over subjects."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_BINS: Final = 15
_RESAMPLES: Final = 1000


def reliability(probability: Floats, truth: Booleans, bins: int = _BINS) -> list[dict[str, float]]:
    """Share, mean confidence and accuracy of the answers, by equal bins of confidence.

    Args:
        probability: Of the positive class, 0..1, shape ``(cells,)``.
        truth: Whether the cell is positive, same shape.
        bins: Number of bins of the winning label's confidence over .5..1.

    Returns:
        One entry for each bin that is not empty.
    """
    confidence = np.maximum(probability, 1 - probability)
    correct = (probability >= 0.5) == truth
    number = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return [
        {
            "share": float(mine.mean()),
            "confidence": float(confidence[mine].mean()),
            "accuracy": float(correct[mine].mean()),
        }
        for mine in (number == b for b in np.unique(number))
    ]


def expected_calibration_error(probability: Floats, truth: Booleans) -> float:
    """Mean gap between confidence and accuracy over equal bins (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probability: Of the positive class, 0..1, shape ``(cells,)``.
        truth: Whether the cell is positive, same shape.

    Returns:
        Error in 0..1.
    """
    return sum(abs(bin_["confidence"] - bin_["accuracy"]) * bin_["share"] for bin_ in reliability(probability, truth))


def weighted_f1(guess: Booleans, truth: Booleans) -> float:
    """F1 of both classes, weighted by their cells: the metric of the challenge.

    Args:
        guess: Whether the cell was called positive, shape ``(cells,)``.
        truth: Whether it is, same shape.
    """
    scores = 0.0
    for wanted in (True, False):
        both = ((guess == wanted) & (truth == wanted)).sum()
        total = (guess == wanted).sum() + (truth == wanted).sum()
        scores += (truth == wanted).mean() * (2 * both / total if total else 0.0)
    return float(scores)


def figures(probability: Floats, truth: Booleans) -> dict[str, Any]:
    """Return all figures at the threshold .5; ALL is the positive class.

    Args:
        probability: Of ALL, calibrated, 0..1, shape ``(cells,)``.
        truth: Whether the cell is ALL, same shape; both classes must be there.
    """
    guess = probability >= 0.5
    precision, recall, f1, count = metrics.precision_recall_fscore_support(
        truth, guess, labels=[True, False], zero_division=0
    )
    return {
        "cells": len(truth),
        "accuracy": float((guess == truth).mean()),
        "weighted_f1": weighted_f1(guess, truth),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(truth, guess)),
        "sensitivity": float(recall[0]),
        "specificity": float(recall[1]),
        "auroc": float(metrics.roc_auc_score(truth, probability)),
        "auprc": float(metrics.average_precision_score(truth, probability)),
        "ece": expected_calibration_error(probability, truth),
        "brier": float(((probability - truth) ** 2).mean()),
        "reliability": reliability(probability, truth),
        "confusion": {
            "rows_true_columns_predicted": ["ALL", "HEM"],
            "counts": metrics.confusion_matrix(truth, guess, labels=[True, False]).tolist(),
        },
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "cells": int(count[i]),
            }
            for i, label in enumerate(("ALL", "HEM"))
        },
    }


def per_subject(probability: Floats, truth: Booleans, subjects: NDArray[np.str_]) -> list[dict[str, Any]]:
    """Return each subject's label, cell count, share of right answers and mean P(ALL).

    A subject that has cells of both classes has an entry for each.
    """
    return [
        {
            "subject": str(subject),
            "label": label,
            "cells": int(mine.sum()),
            "accuracy": float(((probability[mine] >= 0.5) == truth[mine]).mean()),
            "mean_probability_all": float(probability[mine].mean()),
        }
        for subject in np.unique(subjects)
        for label in ("ALL", "HEM")
        for mine in [(subjects == subject) & (truth == (label == "ALL"))]
        if mine.any()
    ]


def subject_bootstrap(
    probability: Floats, truth: Booleans, subjects: NDArray[np.str_], *, seed: int, resamples: int = _RESAMPLES
) -> dict[str, list[float]]:
    """95 % intervals by drawing whole subjects with replacement, within each class.

    Cells of one subject are alike, so a bootstrap over cells would promise too much.

    Args:
        probability: Of ALL, shape ``(cells,)``.
        truth: Whether the cell is ALL.
        subjects: Subject group of each cell; one with cells of both classes is drawn as one of ALL, and draws that
            lack a class are made again.
        seed: Of the draws.
        resamples: Number of draws.

    Returns:
        Lower and upper bound of each figure.
    """
    rng = np.random.default_rng(seed)
    members = {subject: np.flatnonzero(subjects == subject) for subject in np.unique(subjects)}
    classes = [[s for s, rows in members.items() if truth[rows].any() == label] for label in (True, False)]
    judges: dict[str, Callable[[Booleans, Floats], float]] = {
        "accuracy": lambda t, p: float(((p >= 0.5) == t).mean()),
        "weighted_f1": lambda t, p: weighted_f1(p >= 0.5, t),
        "balanced_accuracy": lambda t, p: float(((p >= 0.5)[t].mean() + (p < 0.5)[~t].mean()) / 2),
        "auroc": lambda t, p: float(metrics.roc_auc_score(t, p)),
        "sensitivity": lambda t, p: float((p >= 0.5)[t].mean()),
        "specificity": lambda t, p: float((p < 0.5)[~t].mean()),
        "auprc": lambda t, p: float(metrics.average_precision_score(t, p)),
        "ece": lambda t, p: expected_calibration_error(p, t),
        "brier": lambda t, p: float(((p - t) ** 2).mean()),
    }
    drawn: dict[str, list[float]] = {name: [] for name in judges}

    def draw() -> NDArray[np.int64]:
        while True:
            chosen = [members[s] for names in classes for s in rng.choice(names, size=len(names))]
            rows = np.concatenate(chosen)
            if len(np.unique(truth[rows])) == 2:
                return rows

    for _ in range(resamples):
        rows = draw()
        for name, judge in judges.items():
            drawn[name].append(judge(truth[rows], probability[rows]))
    return {name: [float(np.quantile(values, q)) for q in (0.025, 0.975)] for name, values in drawn.items()}
