"""The files of a model's folder: reports, and card and manifest that are made from them."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from app.core.spec import CARD_FILE, MANIFEST_FILE, REPORT_FILE, Manifest
from training.card import model_card
from training.errors import RunError
from training.run import classifier_config


def variant_file(name: str, variant: str) -> str:
    """Put a variant's name before a file name's suffix: ``model.onnx`` becomes ``model.int8.onnx``."""
    path = Path(name)
    return f"{path.stem}.{variant}{path.suffix}"


def read_report(file: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        RunError: Missing, or no JSON.
    """
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: can't be read: {error}") from error
    return report


def write_report(file: Path, report: dict[str, Any]) -> None:
    """Write a report as indented JSON."""
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def card_of_folder(folder: Path, manifest: Manifest | None = None) -> str:
    """Make the card of an exported model anew.

    Args:
        folder: ``models/<name>/<version>``.
        manifest: What it will have; None reads the one that it has.

    Returns:
        Markdown.

    Raises:
        ManifestError: The manifest can't be read.
        RunError: A report can't be.
    """
    manifest = manifest or Manifest.load(folder)
    report = read_report(folder / REPORT_FILE)
    config = classifier_config(manifest.provenance["lineage"][0]["configuration"])
    variants = {name: read_report(folder / variant_file(REPORT_FILE, name)) for name in manifest.variants}
    return model_card(config, report, manifest.version, manifest.licence, variants)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write a folder's card and manifest, with the hashes of all that it holds."""
    (folder / CARD_FILE).write_text(card_of_folder(folder, manifest), encoding="utf-8")
    files = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST_FILE
    }
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, files=files).to_json(), encoding="utf-8")
