"""Runs side by side: one table from their reports, beside what the two notebooks published."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training.epochs import epochs
from training.errors import RunError
from training.published import beside_published
from training.run import FLOOR, REPORT_FILE

_HEAD: Final = ("run", "network", "start weights", "split", "test cells", "accuracy", "weighted F1", "AUROC",
                "sensitivity", "specificity", "ECE", "epochs")  # fmt: skip
_FIGURES: Final = ("accuracy", "weighted_f1", "auroc", "sensitivity", "specificity", "ece")


@dataclass(frozen=True)
class Judged:
    """A run and its report.

    Attributes:
        name: The run's folder.
        report: As `training.evaluate` wrote it.
    """

    name: str
    report: dict[str, Any]

    @property
    def leaks(self) -> bool:
        """Whether subjects stand on several sides of its split."""
        return bool(self.report["split"]["leaks"])

    @property
    def is_floor(self) -> bool:
        """Whether it is what area and colours alone tell (`training.floor`)."""
        return bool(self.report["model"] == FLOOR)


def read_reports(runs: list[Path]) -> list[Judged]:
    """Read the reports of runs: the floor first, then the best subject-disjoint one, leaking ones last.

    Args:
        runs: Folders of evaluated runs, or their report files.

    Raises:
        RunError: A run has no report, or one of an earlier version.
    """
    judged = []
    for run in runs:
        file = run / REPORT_FILE if run.is_dir() else run
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
            row(Judged(file.parent.name, report))
        except (OSError, ValueError) as error:
            raise RunError(f"{run} has no report; judge it with 'leukoscope-train evaluate {run}'") from error
        except (KeyError, TypeError) as error:
            raise RunError(f"{file} lacks {error}; judge the run anew with 'leukoscope-train evaluate'") from error
        views = f" ({report['views']} views)" if report["views"] > 1 else ""
        judged.append(Judged(file.parent.name + views, report))
    return sorted(judged, key=lambda one: (one.leaks, not one.is_floor, -one.report["test"]["weighted_f1"]))


def row(judged: Judged) -> tuple[str, ...]:
    """Return a run's line of the table."""
    report, test = judged.report, judged.report["test"]

    def figure(name: str) -> str:
        low, high = test["interval_95"][name]
        return f"{test[name]:.4f} ({low:.3f} to {high:.3f})"

    network = report["network"] + (", frozen" if report["frozen"] else "")
    return (
        judged.name,
        network,
        report["start"]["licence"],
        report["split"]["name"],
        f"{test['cells']}",
        *(figure(name) for name in _FIGURES),
        epochs(report),
    )


def head() -> tuple[str, ...]:
    """Return the names of the table's columns."""
    return _HEAD


def results_page(runs: list[Judged]) -> str:
    """Write all results as Markdown.

    Args:
        runs: Of `read_reports`.

    Returns:
        A page with what was published and the same systems here, the runs that judge subjects not seen,
        those that leak, what else was tried, and each subject-disjoint run's hardest subjects.
    """
    honest, leaking = [one for one in runs if not one.leaks], [one for one in runs if one.leaks]
    sections = [
        "# Results",
        "Made by `leukoscope-train results`; not to be edited. In brackets: 95 % intervals by bootstrap over subjects. "
        "Weighted F1 over single cells is the metric of the C-NMC challenge.",
        "## The two notebooks' systems, as published and as measured here",
        "Accuracy. The notebooks split all three folds by image, so that cells of one subject stand on both sides, and "
        "so do the columns by image, on folds 0 and 1. The last two columns are the same systems, taught on the "
        "subjects of one fold and asked about those of the other. No weights: those of ImageNet were not at hand.",
        _markdown(*beside_published([one.report for one in runs])),
        "## Subjects that were not seen in training",
        _markdown(_HEAD, [row(one) for one in honest]) if honest else "No runs yet.",
        *_absent(runs),
        "## Random splits by image, as the notebooks did",
        "Cells of one subject stand on both sides: these figures show how well a network knows its subjects. They are "
        "here to stand beside the published ones, and beside the same network above.",
        _markdown(_HEAD, [row(one) for one in leaking]) if leaking else "No runs yet.",
        "## What was tried for the shipped models",
        *_tried(),
        "## Hardest subjects",
        _markdown(("run", "subject", "label", "cells", "right"), [line for one in honest for line in _hardest(one)]),
        "## Splits",
        _markdown(("run", "split", "sha256"), [(one.name, *_split(one)) for one in runs]),
    ]
    return "\n\n".join(sections) + "\n"


def _absent(runs: list[Judged]) -> list[str]:
    """Name the runs that judged one of these, and are not among them."""
    judges = {other["run"]: one.name for one in runs for other in one.report["split"].get("judged_by", ())}
    absent = [f"{judge} (judged {name})" for judge, name in judges.items() if judge not in {one.name for one in runs}]
    return [f"Their own reports are not kept here: {', '.join(absent)}."] if absent else []


def _tried() -> tuple[str, str]:
    """What was tried beside the runs, and what it gave."""
    tables = tomllib.loads((Path(__file__).parent / "tried.toml").read_text(encoding="utf-8"))

    def pair(entry: dict[str, Any], direction: str) -> str:
        return " / ".join(f"{value:.3f}" for value in entry.get(direction, ()))

    rows = [(one["what"], *(pair(one, way) for way in ("forward", "reverse", "pooled"))) for one in tables["tried"]]
    columns = ("what", "fold 0 to 1: AUROC / weighted F1", "fold 1 to 0", "pooled")
    return f"{tables['note']} Explored before the recipe was fixed, by scripts that are not kept.", _markdown(
        columns, rows
    )


def _hardest(judged: Judged, count: int = 3) -> list[tuple[str, ...]]:
    subjects = sorted(judged.report["test"]["subjects"], key=lambda subject: subject["accuracy"])[:count]
    return [(judged.name, s["subject"], s["label"], str(s["cells"]), f"{s['accuracy']:.3f}") for s in subjects]


def _split(judged: Judged) -> tuple[str, str]:
    split = judged.report["split"]
    return split["name"], f"`{split['sha256'][:16]}`"


def _markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
