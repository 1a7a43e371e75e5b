"""Fit an exported model's temperature, review band and novelty threshold to the cells of another site.

The network stays as it is. Another camera, stain or mix of patients moves probabilities before it moves their
order; a few labelled cells of the site put them right (Guo et al. 2017, arXiv:1706.04599).
"""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from app.core.postprocess import softmax
from app.core.spec import CARD_FILE, MANIFEST_FILE, MODEL_FILE, REPORT_FILE, Manifest, Novelty, ReviewBand
from training.calibrate import choose_review_band, fit_temperature
from training.card import model_card
from training.data.arrays import load_inputs, targets
from training.data.index import load_index
from training.data.labels import ALL, LABELS
from training.errors import DataError, RunError
from training.evaluate import WANTED_ACCURACY, WANTED_SENSITIVITY
from training.metrics import figures
from training.parity import onnx_outputs
from training.run import classifier_config

_LEAST_CELLS: Final = 50
_OWN_QUANTILE: Final = 0.99


def recalibrate(folder: Path, index: Path, version: str) -> Path:
    """Write a new version of a model beside the old one, whole or not at all.

    Args:
        folder: ``models/<name>/<version>``.
        index: Of the site's labelled cells, made by ``leukoscope-train index``.
        version: Of the new model; must not exist yet.

    Returns:
        The new folder.

    Raises:
        ManifestError: The model can't be read.
        TrainingError: The version exists, or there are fewer than 50 labelled cells of a class.
    """
    manifest = Manifest.load(folder)
    target = folder.parent / version
    if target.exists():
        raise RunError(f"{target} exists; choose another version")
    cells = _labelled(index)
    inputs = load_inputs(cells, index.parent, manifest.preprocessing, index.parent / "cache")
    said = onnx_outputs(folder / MODEL_FILE, inputs)
    truth = targets(cells) == ALL
    logits = said.logits.astype(np.float64)
    temperature = fit_temperature(logits, targets(cells))
    before, after = (softmax(logits, one)[:, ALL] for one in (manifest.temperature, temperature))
    band = choose_review_band(after, truth, WANTED_ACCURACY, WANTED_SENSITIVITY)
    novelty = manifest.novelty
    if novelty is not None:
        own = float(np.quantile(said.novelty, _OWN_QUANTILE))
        novelty = dataclasses.replace(novelty, threshold=max(novelty.threshold, own))
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    report["recalibration"] = {
        "of": manifest.version,
        "cells": len(cells),
        "subjects": cells["group"].drop_nulls().n_unique(),
        "pictures_sha256": hashlib.sha256("\n".join(sorted(cells["sha256"])).encode()).hexdigest(),
        "before": figures(before, truth),
        "after": figures(after, truth),
    }
    fitted = dataclasses.replace(manifest, version=version, temperature=temperature, review=band, novelty=novelty)
    _write(folder, target, fitted, _renewed(report, temperature, band, novelty))
    return target


def _labelled(index: Path) -> pl.DataFrame:
    cells = load_index(index).filter(pl.col("label").is_not_null() & ~pl.col("duplicate"))
    counts = {label: int((cells["label"] == label).sum()) for label in LABELS}
    if min(counts.values()) < _LEAST_CELLS:
        found = ", ".join(f"{count} {label}" for label, count in counts.items())
        raise DataError(f"{index} has {found} cells; expected at least {_LEAST_CELLS} of each, of several subjects")
    return cells


def _renewed(report: dict[str, Any], temperature: float, band: ReviewBand, novelty: Novelty | None) -> dict[str, Any]:
    """The report with what is served from now on."""
    report = report | {"temperature": temperature}
    report["review_band"] = report["review_band"] | {"low": band.low, "high": band.high}
    if novelty is not None and "novelty" in report:
        report["novelty"] = report["novelty"] | {"threshold": novelty.threshold}
    return report


def _write(folder: Path, target: Path, manifest: Manifest, report: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".recalibrate-") as scratch:
        made = Path(scratch) / target.name
        shutil.copytree(folder, made)
        (made / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        config = classifier_config(manifest.provenance["lineage"][0]["configuration"])
        card = model_card(config, report, manifest.version, manifest.licence["data"])
        (made / CARD_FILE).write_text(card, encoding="utf-8")
        files = {name: hashlib.sha256((made / name).read_bytes()).hexdigest() for name in manifest.files}
        (made / MANIFEST_FILE).write_text(dataclasses.replace(manifest, files=files).to_json(), encoding="utf-8")
        made.rename(target)
