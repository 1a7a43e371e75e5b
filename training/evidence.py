"""Evidence: the reports that training/RESULTS.md is made from, kept in the repository when the runs are gone."""

import json
from pathlib import Path
from typing import Any, Final

from app.core.spec import MANIFEST_FILE, Manifest
from training.errors import RunError
from training.export import lineage
from training.run import FLOOR, REPORT_FILE, Run

EVIDENCE: Final = Path("training/evidence")


def keep(source: Path, evidence: Path = EVIDENCE) -> Path:
    """Store a run's report and configurations, without paths of this machine.

    Args:
        source: Folder of an evaluated run, or of an exported model, which goes by the model's name.
        evidence: Folder of all evidence.

    Returns:
        The run's folder in it.

    Raises:
        RunError: There is no report, or it is not known what made it.
        ManifestError: A model's manifest can't be read.
    """
    try:
        report: dict[str, Any] = json.loads((source / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{source} has no report; judge it with 'leukoscope-train evaluate {source}'") from error
    report.pop("export", None)
    name, made_by = _origin(source, report)
    folder = evidence / name
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report | {"lineage": [_nameless(entry) for entry in made_by]}, separators=(",", ":"))
    part = folder / f"{REPORT_FILE}.part"
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(folder / REPORT_FILE)
    return folder


def kept(evidence: Path = EVIDENCE) -> list[Path]:
    """Return the folders of all evidence, by name.

    Raises:
        RunError: There is none.
    """
    folders = sorted(file.parent for file in evidence.glob(f"*/{REPORT_FILE}"))
    if not folders:
        raise RunError(f"{evidence} holds no reports; store some with 'leukoscope-train keep RUN'")
    return folders


def _origin(source: Path, report: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """Under what name a report goes, and the configurations behind it."""
    if (source / MANIFEST_FILE).is_file():
        manifest = Manifest.load(source)
        return manifest.name, manifest.provenance["lineage"]
    name = source.resolve().name
    if report.get("model") == FLOOR:
        return name, []
    return name, lineage(Run(source).config())


def _nameless(entry: dict[str, Any]) -> dict[str, Any]:
    """Name a start file without its folder: its hash stands beside it."""
    configuration = entry["configuration"]
    start = configuration["model"]["start"]
    if start.get("file") is None:
        return entry
    start = start | {"file": Path(start["file"]).name}
    return entry | {"configuration": configuration | {"model": configuration["model"] | {"start": start}}}
