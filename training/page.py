"""The report as one self-contained page: figures, plots, subjects and the cells that went most wrong."""

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from training import plots
from training.epochs import ended

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .7rem; border-bottom: 1px solid #ddd; }
td { text-align: right; } td:first-child, th { text-align: left; } .warning { background: #fde8e8; padding: .7rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { font-size: .8rem; }
.row svg { max-width: 100%; height: auto; }
"""
FIGURES: Final = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity (ALL)",
    "specificity": "specificity (HEM)",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "ece": "calibration error (ECE)",
    "brier": "Brier score",
}


@dataclass(frozen=True)
class WorstCell:
    """A cell that was judged wrongly, and surely.

    Attributes:
        caption: Its subject, its label and what it was called.
        pixels: As the model saw it, shape ``(size, size, 3)``.
    """

    caption: str
    pixels: NDArray[np.uint8]


def report_page(
    report: dict[str, Any],
    probability: NDArray[np.float64],
    truth: NDArray[np.bool_],
    worst: list[WorstCell],
    log: Path,
) -> str:
    """Make the page of a report.

    Args:
        report: As in ``report.json``.
        probability: Of ALL, for each cell of the test part.
        truth: Whether it is ALL.
        worst: Cells to show.
        log: The run's CSV log; left out if it is not there.

    Returns:
        HTML that needs nothing else.
    """
    test = report["test"]
    drawn = [
        plots.confusion(test["confusion"]["counts"]),
        plots.roc(probability, truth),
        plots.precision_recall(probability, truth),
        plots.reliability(test["reliability"]),
    ]
    name = html.escape(report["model"])
    parts = [
        f"<h1>{name}</h1>",
        _split(report),
        "<h2>Figures</h2>",
        _figures(report),
        _classes(test["per_class"]),
        f'<h2>Plots of the test part</h2><div class="row">{"".join(drawn)}</div>',
        "<h2>What is no cell</h2>",
        _novelty(report["novelty"]),
        "<h2>Subjects of the test part</h2>",
        plots.subjects(test["subjects"]),
        _subjects(test["subjects"], report["novelty"]["subjects"]),
        "<h2>Cells that went most wrong</h2>",
        f'<div class="row">{"".join(map(_cell, worst))}</div>',
    ]
    if log.is_file():
        parts += ["<h2>Training</h2>", plots.history(pl.read_csv(log))]
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _split(report: dict[str, Any]) -> str:
    split = report["split"]
    rows = [
        (part, *(counts[label][key] for label in ("ALL", "HEM") for key in ("cells", "subjects")))
        for part, counts in split["parts"].items()
    ]
    leak = (
        '<p class="warning">This split leaks: cells of one subject stand on several sides. The figures say how well '
        "the model knows these subjects, not how well it judges new ones.</p>"
    )
    views = f"; each test answer is the mean over {report['views']} views" if report["views"] > 1 else ""
    return (
        f"<p>Split: {html.escape(split['name'])} (sha256 {split['sha256'][:16]}){views}. "
        f"Temperature {report['temperature']:.3f}, from the validation part.</p>"
        + (leak if split["leaks"] else "")
        + (f'<p class="warning">{words}</p>' if (words := ended(report)) else "")
        + _table(("part", "ALL cells", "ALL subjects", "HEM cells", "HEM subjects"), rows)
    )


def _figures(report: dict[str, Any]) -> str:
    rows = []
    for key, name in FIGURES.items():
        low, high = report["test"]["interval_95"][key]
        values = (f"{report['validation'][key]:.4f}", f"{report['test'][key]:.4f}", f"{low:.3f} to {high:.3f}")
        rows.append((name, *values))
    return _table(("figure", "validation", "test", "95 % interval over subjects"), rows)


def _classes(classes: dict[str, Any]) -> str:
    rows = [
        (label, values["cells"], *(f"{values[key]:.4f}" for key in ("precision", "recall", "f1")))
        for label, values in classes.items()
    ]
    return _table(("class (test)", "cells", "precision", "recall", "F1"), rows)


def _novelty(novelty: dict[str, Any]) -> str:
    rows = [
        (
            kind["kind"],
            "no" if kind["no_cell"] else "yes, but",
            "yes" if kind["use"] == "choosing" else "no",
            kind["pictures"],
            f"{kind['flagged']:.3f}",
        )
        for kind in novelty["kinds"]
    ]
    cells = novelty["cells_flagged"]
    return (
        f"<p>A picture whose novelty ({html.escape(novelty['method'])}) is over {novelty['threshold']:.3f} is flagged. "
        f"Of the test cells {cells['test']:.4f} are, of the validation cells {cells['validation']:.4f}; of pictures "
        f"that are no cell, of kinds that chose nothing, {novelty['no_cells_flagged']['testing']:.3f}.</p>"
        + _table(("kind of picture", "a cell", "chose the threshold", "pictures", "flagged"), rows)
    )


def _subjects(subjects: list[dict[str, Any]], flagged: dict[str, float]) -> str:
    rows = [
        (
            s["subject"],
            s["label"],
            s["cells"],
            f"{s['accuracy']:.3f}",
            f"{s['mean_probability_all']:.3f}",
            f"{flagged[s['subject']]:.3f}",
        )
        for s in subjects
    ]
    return _table(("subject", "label", "cells", "right", "mean P(ALL)", "flagged as no cell"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    def line(cells: tuple[Any, ...], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _cell(cell: WorstCell) -> str:
    buffer = io.BytesIO()
    Image.fromarray(cell.pixels).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = html.escape(cell.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
