"""`python -m tests.bench.precisions`: what each engine and precision answers on real cells, and how fast, in turn."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from app.core.errors import ModelError
from app.core.imaging import decode, preprocess
from app.core.postprocess import POSITIVE, softmax
from app.core.spec import MODEL_FILE, Manifest
from app.cpus import usable_cpus
from app.inference.opening import open_session
from app.inference.providers import Placement
from app.inference.session import Session
from tests.bench.contenders import ROOT

_BATCH = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table; return an exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.precisions", description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="folder with active.json")
    parser.add_argument("--cells", type=Path, default=ROOT / "runs" / "cells.parquet", help="an index of cells")
    parser.add_argument("--fold", type=int, default=1, help="cells of this fold only")
    parser.add_argument("--every", type=int, default=1, help="take each n-th of them")
    options = parser.parse_args(arguments)
    active = json.loads((options.models / "active.json").read_text(encoding="utf-8"))
    folder = options.models / active["name"] / active["version"]
    manifest = Manifest.load(folder)
    cells = pl.read_parquet(options.cells).filter(pl.col("fold") == options.fold, ~pl.col("duplicate"))
    cells = cells.gather_every(options.every)
    images = np.stack(
        [
            preprocess(decode((options.cells.parent / path).read_bytes()), manifest.preprocessing)
            for path in cells["path"]
        ]
    )
    positive = (cells["label"] == POSITIVE).to_numpy()
    sessions = _sessions(folder, manifest)
    margins, seconds = _answer(sessions, images)
    print(_table(manifest, margins, seconds, positive))  # noqa: T201 - it is what the command is for
    return 0


def _sessions(folder: Path, manifest: Manifest) -> dict[str, Session]:
    """Open the model by each engine and in each precision that can be had here; float32 in ONNX Runtime first."""
    wanted = {
        "onnxruntime fp32": (MODEL_FILE, Placement(device="cpu", threads=usable_cpus())),
        "openvino fp32": (MODEL_FILE, Placement(device="cpu", threads=usable_cpus(), cpu_engine="openvino")),
        "openvino bf16": (
            MODEL_FILE,
            Placement(device="cpu", threads=usable_cpus(), cpu_engine="openvino", precision="bf16"),
        ),
    }
    for name, variant in manifest.variants.items():
        wanted[f"onnxruntime {name}"] = (variant.file, wanted["onnxruntime fp32"][1])
        wanted[f"openvino {name}"] = (variant.file, wanted["openvino fp32"][1])
    opened: dict[str, Session] = {}
    for name, (file, placement) in wanted.items():
        try:
            opened[name] = open_session(folder / file, manifest, placement)
        except ModelError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)  # noqa: T201 - a command's progress
    return opened


def _answer(
    sessions: dict[str, Session], images: NDArray[np.uint8]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, list[float]]]:
    """Run every batch by each session in turn; return logits, and seconds per picture of each batch."""
    logits: dict[str, list[NDArray[np.float32]]] = {name: [] for name in sessions}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        for name, session in sessions.items():
            began_s = time.perf_counter()
            logits[name].append(session.run(batch).logits)
            seconds[name].append((time.perf_counter() - began_s) / len(batch))
    return {name: np.concatenate(parts) for name, parts in logits.items()}, seconds


def _table(
    manifest: Manifest,
    logits: dict[str, NDArray[np.float32]],
    seconds: dict[str, list[float]],
    positive: NDArray[np.bool_],
) -> str:
    column = manifest.labels.index(POSITIVE)
    first = next(iter(logits))
    reference = softmax(logits[first], manifest.temperature)[:, column]
    rows = [
        "| engine | pictures/s | speed | weighted F1 | same label | \N{GREEK CAPITAL LETTER DELTA}p mean | p99 | max |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, values in logits.items():
        precision = name.split()[-1]
        probability = softmax(values, manifest.in_precision(precision).temperature)[:, column]
        apart = np.abs(probability - reference)
        same = ((probability > 0.5) == (reference > 0.5)).sum()
        speed = statistics.median(base / own for base, own in zip(seconds[first], seconds[name], strict=True))
        f1 = f1_score(positive, probability > 0.5, average="weighted")
        rows.append(
            f"| {name} | {1 / statistics.median(seconds[name]):.1f} | {speed:.2f} | {f1:.4f} | {same} of {len(apart)} "
            f"| {apart.mean():.4f} | {np.quantile(apart, 0.99):.4f} | {apart.max():.4f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
