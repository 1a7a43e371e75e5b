"""Put another precision of a model beside its graph: the same input and outputs, calibrated by itself."""

import base64
import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from app.core.imaging import decode, preprocess
from app.core.parts import Novelty, ReviewBand, Variant
from app.core.spec import MODEL_FILE, REPORT_FILE, Manifest
from training.errors import RunError
from training.export import lineage, write_graph
from training.folder import seal, variant_file, write_report
from training.parity import onnx_logits
from training.run import Run

# Engines add up whole numbers alike, but round what lies between two of them by their own order of sums.
_GOLDEN_ATOL: Final = 0.5
_NOT_YET: Final = "0" * 64  # the hash of a file that is about to be sealed
_FIGURES: Final = ("weighted_f1", "auroc", "accuracy", "sensitivity", "specificity", "ece")


def add_variant(folder: Path, run: Run, precision: str, version: str) -> Path:
    """Write the next version of a model, with a run's graph as a variant, whole or not at all.

    All that the model had stays as it is, byte for byte, but for manifest and card.

    Args:
        folder: ``models/<name>/<version>``.
        run: A fitted and evaluated run that takes the same input.
        precision: What the variant is called, such as ``int8``: the service's setting asks for it.
        version: Of the new model; must not exist yet.

    Returns:
        The new folder.

    Raises:
        ManifestError: The model can't be read.
        RunError: The version exists, the run takes another input, or it has not been evaluated.
        ParityError: The graph does not compute what the run's network does.
    """
    manifest = Manifest.load(folder)
    target = folder.parent / version
    if target.exists():
        raise RunError(f"{target} exists; choose another version")
    if run.config().input.spec() != manifest.preprocessing:
        raise RunError(f"{run.folder} takes another input than {folder}: it can't be a variant of it")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".variant-") as scratch:
        made = Path(scratch) / version
        shutil.copytree(folder, made)
        graph = made / variant_file(MODEL_FILE, precision)
        report = write_graph(run, graph)
        if run.config().model.activation == "hard-swish":
            report["activation"] = "hard-swish"  # not the model's own, so its card says so
        write_report(made / variant_file(REPORT_FILE, precision), report)
        seal(
            made,
            dataclasses.replace(
                manifest,
                version=version,
                files=manifest.files | {graph.name: _NOT_YET},
                variants=manifest.variants | {precision: _variant(manifest, graph, report)},
                provenance=manifest.provenance | {f"lineage_{precision}": lineage(run.config())},
            ),
        )
        made.rename(target)
    return target


def _variant(manifest: Manifest, graph: Path, report: dict[str, Any]) -> Variant:
    golden = preprocess(decode(base64.b64decode(manifest.golden.image_png)), manifest.preprocessing)
    band, novelty = report["review_band"], report["novelty"]
    return Variant(
        file=graph.name,
        logits=tuple(float(value) for value in onnx_logits(graph, golden[None], manifest.preprocessing)[0]),
        atol=_GOLDEN_ATOL,
        figures={name: report["test"][name] for name in _FIGURES},
        temperature=report["temperature"],
        review=ReviewBand(low=band["low"], high=band["high"]),
        novelty=Novelty(method=novelty["method"], threshold=novelty["threshold"]),
    )
