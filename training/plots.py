"""Plots of a report, each an SVG to put into a page."""

import io
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_ALL_COLOUR = "#b5354a"
_HEM_COLOUR = "#2b6cb0"
_GREY = "#888888"


def confusion(counts: list[list[int]]) -> str:
    """Draw a confusion matrix; rows are true, columns predicted, ALL before HEM."""
    figure, axes = _figure(4, 3.6)
    shares = np.array(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(2):
        for column in range(2):
            dark = shares[row, column] > 0.5
            text = f"{counts[row][column]}\n{shares[row, column]:.1%}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks([0, 1], ["ALL", "HEM"])
    axes.set_yticks([0, 1], ["ALL", "HEM"])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _svg(figure, "Confusion")


def roc(probability: Floats, truth: Booleans) -> str:
    """Draw sensitivity over 1 - specificity."""
    figure, axes = _figure()
    false_positive, true_positive, _ = roc_curve(truth, probability)
    axes.plot(false_positive, true_positive, color=_ALL_COLOUR)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    return _svg(figure, "ROC curve")


def precision_recall(probability: Floats, truth: Booleans) -> str:
    """Draw precision over recall of ALL."""
    figure, axes = _figure()
    precision, recall, _ = precision_recall_curve(truth, probability)
    axes.plot(recall, precision, color=_ALL_COLOUR)
    axes.axhline(truth.mean(), color=_GREY, linestyle=":")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall of ALL")
    axes.set_ylabel("precision of ALL")
    return _svg(figure, "Precision and recall")


def reliability(bins: list[dict[str, float]]) -> str:
    """Draw how often answers of a confidence are right."""
    figure, axes = _figure()
    confidence = [entry["confidence"] for entry in bins]
    axes.plot([0.5, 1], [0.5, 1], color=_GREY, linestyle=":")
    axes.plot(confidence, [entry["accuracy"] for entry in bins], marker="o", color=_ALL_COLOUR)
    axes.bar(confidence, [entry["share"] for entry in bins], width=0.02, color=_GREY, alpha=0.5)
    axes.set_xlabel("mean confidence of a bin (bars: share of the cells)")
    axes.set_ylabel("share of right answers")
    axes.set_ylim(0, 1.02)
    return _svg(figure, "Reliability")


def subjects(rows: list[dict[str, Any]]) -> str:
    """Draw each subject's share of right answers."""
    rows = sorted(rows, key=lambda row: (row["label"], row["accuracy"]))[:200]
    figure, axes = _figure(max(5.0, 0.28 * len(rows)), 3.6)
    colours = [_ALL_COLOUR if row["label"] == "ALL" else _HEM_COLOUR for row in rows]
    axes.bar(range(len(rows)), [row["accuracy"] for row in rows], color=colours)
    axes.set_xticks(range(len(rows)), [f"{row['subject']} ({row['cells']})" for row in rows], rotation=90, fontsize=7)
    axes.axhline(0.5, color=_GREY, linestyle=":")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of right answers")
    return _svg(figure, "By subject (number of cells): ALL red, HEM blue")


def history(log: pl.DataFrame) -> str:
    """Draw losses and accuracies over the epochs of a run's CSV log."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, names in ((left, ("train_loss", "val_loss")), (right, ("train_accuracy", "val_accuracy", "val_auroc"))):
        for name in names:
            if name in log.columns:
                points = log.select("epoch", name).drop_nulls()
                axes.plot(points["epoch"] + 1, points[name], marker=".", label=name)
        axes.set_xlabel("epoch")
        axes.legend()
    return _svg(figure, "Training history")


def _figure(width: float = 4.4, height: float = 3.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure, title: str) -> str:
    """Render to an SVG element."""
    figure.suptitle(title, fontsize=10)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
