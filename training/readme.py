"""The figures of the shipped models in README.md: generated from their reports, never typed."""

import re
from pathlib import Path
from typing import Any, Final

from app.core.spec import REPORT_FILE, Manifest
from training.errors import RunError
from training.folder import read_report, variant_file

BEGIN: Final = "<!-- figures: made by leukoscope-train figures -->"
END: Final = "<!-- end of figures -->"
_HEAD: Final = (
    "| model | measured on | weighted F1 | AUROC | sensitivity (ALL) | specificity (HEM) | ECE | sent to a person |",
    "|---|---|---|---|---|---|---|---|",
)


def figures_table(models: Path) -> str:
    """Return a Markdown table of all installed models and their variants, 95 % intervals over subjects in brackets.

    Args:
        models: Folder of all models.

    Raises:
        RunError: There is none.
        ManifestError: A manifest can't be read.
    """
    folders = [report.parent for report in sorted(models.glob(f"*/*/{REPORT_FILE}"))]
    rows = [_row(folder, variant) for folder in folders for variant in ("", *Manifest.load(folder).variants)]
    if not rows:
        raise RunError(f"{models} holds no model with a report")
    return "\n".join([*_HEAD, *rows])


def renewed(readme: str, table: str) -> str:
    """Return a README with the table between its markers.

    Raises:
        RunError: The markers are not there.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(readme):
        raise RunError(f"the file has no place for figures; expected {BEGIN} and {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{table}\n{END}", readme)


def _row(folder: Path, variant: str) -> str:
    manifest = Manifest.load(folder)
    report = read_report(folder / (variant_file(REPORT_FILE, variant) if variant else REPORT_FILE))
    test = report["test"]
    subjects = sum(
        counts["subjects"] for counts in report["split"]["parts"]["test"].values() if isinstance(counts, dict)
    )
    cells = [
        f"[`{manifest.name}` {manifest.version}](models/{manifest.name}/{manifest.version}/MODEL_CARD.md)"
        + (f", `{variant}`" if variant else ""),
        f"{test['cells']:,} cells of {subjects} subjects; {_how(report['split'])}",
        *(_with_interval(test, name) for name in ("weighted_f1", "auroc", "sensitivity", "specificity")),
        f"{test['ece']:.3f}",
        f"{test['review']['share_sent_to_review']:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _how(split: dict[str, Any]) -> str:
    """The split, or those of the models that judge one of all subjects."""
    judges = [one["name"].split(",")[0] for one in split.get("judged_by", ())]
    return f"pooled from {len(judges)} models of the recipe: {', '.join(judges)}" if judges else str(split["name"])


def _with_interval(test: dict[str, Any], name: str) -> str:
    bounds = test["interval_95"].get(name)
    return f"{test[name]:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")
