"""Fit an exported model's temperature, review band and novelty threshold to the cells of another site.

The network stays as it is. Another camera, stain or mix of patients moves probabilities before it moves their
order; a few labelled cells of the site put them right (Guo et al. 2017, arXiv:1706.04599).
"""

import dataclasses
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.core.parts import Novelty, ReviewBand
from app.core.postprocess import softmax
from app.core.spec import MODEL_FILE, REPORT_FILE, Manifest
from training.calibrate import choose_review_band, fit_temperature
from training.data.arrays import load_inputs, targets
from training.data.index import contradictory, load_index
from training.data.labels import ALL, LABELS
from training.errors import DataError, RunError
from training.evaluate import WANTED_ACCURACY, WANTED_SENSITIVITY
from training.folder import read_report, seal, variant_file, write_report
from training.metrics import figures
from training.parity import onnx_outputs

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
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".recalibrate-") as scratch:
        made = Path(scratch) / target.name
        shutil.copytree(folder, made)
        fitted = _refit(made, manifest, "", cells, inputs)
        variants = {}
        for name, variant in manifest.variants.items():
            own = _refit(made, manifest, name, cells, inputs)
            variants[name] = dataclasses.replace(
                variant, temperature=own.temperature, review=own.band, novelty=own.novelty
            )
        renewed = dataclasses.replace(
            manifest,
            version=version,
            temperature=fitted.temperature,
            review=fitted.band,
            novelty=fitted.novelty,
            variants=variants,
        )
        seal(made, renewed)
        made.rename(target)
    return target


@dataclass(frozen=True)
class _Fitted:
    """What a site's cells say of a graph."""

    temperature: float
    band: ReviewBand
    novelty: Novelty | None


def _refit(folder: Path, manifest: Manifest, variant: str, cells: pl.DataFrame, inputs: NDArray[np.uint8]) -> _Fitted:
    """Fit one graph of a folder to the cells, and renew its report."""
    graph = manifest.variants[variant].file if variant else MODEL_FILE
    said = onnx_outputs(folder / graph, inputs, manifest.preprocessing)
    earlier = manifest.in_precision(variant)
    truth = targets(cells) == ALL
    logits = said.logits.astype(np.float64)
    temperature = fit_temperature(logits, targets(cells))
    before, after = (softmax(logits, one)[:, ALL] for one in (earlier.temperature, temperature))
    band = choose_review_band(after, truth, WANTED_ACCURACY, WANTED_SENSITIVITY)
    novelty = earlier.novelty
    if novelty is not None:
        own = float(np.quantile(said.novelty, _OWN_QUANTILE))
        novelty = dataclasses.replace(novelty, threshold=max(novelty.threshold, own))
    file = folder / (variant_file(REPORT_FILE, variant) if variant else REPORT_FILE)
    report = read_report(file)
    report["recalibration"] = {
        "of": manifest.version,
        "cells": len(cells),
        "subjects": cells["group"].drop_nulls().n_unique(),
        "pictures_sha256": hashlib.sha256("\n".join(sorted(cells["sha256"])).encode()).hexdigest(),
        "before": figures(before, truth),
        "after": figures(after, truth),
    }
    write_report(file, _renewed(report, temperature, band, novelty))
    return _Fitted(temperature, band, novelty)


def _labelled(index: Path) -> pl.DataFrame:
    cells = load_index(index).filter(pl.col("label").is_not_null() & ~pl.col("duplicate") & ~contradictory())
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
