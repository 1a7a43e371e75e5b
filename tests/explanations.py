"""Measure what the heat-maps of a model are worth: where they lie, what they depend on, what they foretell.

    python -m tests.explanations --cells data/C-NMC_Leukemia/training_data/fold_1 --count 200

Three checks, each on a picture's evidence as it is drawn:

- **inside**: the share of the evidence's mass that lies on the cell, beside the cell's share of the area.
- **randomised** (Adebayo et al. 2018, arXiv:1810.03292): the correlation of the evidence with that of the same
  graph with its weights shuffled. Evidence that stays the same would show the picture, not the model.
- **occlusion** (after Zeiler & Fergus 2014, arXiv:1311.2901): the fall of the label's margin when the square of
  strongest evidence is covered with the cell's mean colour, beside the mean fall for random squares on the cell.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from app.core import imaging
from app.core.parts import Preprocessing
from app.core.spec import EVIDENCE_NAME, INPUT_NAME, MODEL_FILE
from app.inference.explain import spread
from app.inference.loader import LoadedModel
from app.inference.providers import Placement
from app.inference.registry import ModelRef, Registry
from tests.service.harness import ROOT, load

SQUARE_SHARE = 1 / 3  # side of the covered square, of the crop's side
RANDOM_SQUARES = 10
SHUFFLES = 5
SHUFFLED_CELLS = 20
BACKGROUND = 8  # a segmented cell stands on black; compression and resizing leave a little

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Looked:
    """One picture as the model sees it, its evidence towards its label, and where the cell is."""

    pixels: Pixels
    logits: NDArray[np.float32]
    towards: Map
    cell: Mask


def look(model: LoadedModel, pixels: Pixels) -> Looked:
    """Ask the model about one input of shape ``(size_px, size_px, 3)``."""
    outputs = model.session.run(pixels[None])
    assert outputs.evidence is not None
    side = len(pixels)
    values, _ = spread(outputs.evidence[0], (side, side), (0, 0, side, side))
    sign = 1 if outputs.logits[0].argmax() == model.manifest.labels.index("ALL") else -1
    return Looked(pixels, outputs.logits[0], sign * values, pixels.max(axis=2) > BACKGROUND)


def inside(looked: Looked) -> tuple[float, float]:
    """Share of the evidence's mass on the cell, and the cell's share of the area."""
    mass = np.abs(looked.towards)
    return float(mass[looked.cell].sum() / mass.sum()), float(looked.cell.mean())


def margin(model: LoadedModel, pixels: Sequence[Pixels], label: int) -> NDArray[np.float64]:
    """Logit of `label` less the other's, for each picture."""
    logits = np.concatenate([model.session.run(np.stack([one])).logits for one in pixels]).astype(np.float64)
    return logits[:, label] - logits[:, 1 - label]


def occlusion(model: LoadedModel, looked: Looked, rng: np.random.Generator) -> tuple[float, float]:
    """Fall of the label's margin: strongest square covered; mean over random squares covered."""
    half = round(len(looked.pixels) * SQUARE_SHARE / 2)
    rows, columns = np.nonzero(looked.cell)
    centres = rng.choice(len(rows), size=RANDOM_SQUARES, replace=False)
    best = max(
        range(0, len(rows), 7), key=lambda index: _sum_in(looked.towards, int(rows[index]), int(columns[index]), half)
    )
    label = int(looked.logits.argmax())
    pictures = [looked.pixels, *(_cover(looked, rows[index], columns[index], half) for index in [best, *centres])]
    whole, strongest, *random = margin(model, pictures, label)
    return float(whole - strongest), float(whole - np.mean(random))


def randomised(graph: Path, pictures: Sequence[Pixels], seed: int) -> NDArray[np.float64]:
    """Correlation of each picture's evidence with that of the shuffled graph."""
    with tempfile.TemporaryDirectory() as folder:
        other = shuffled(graph, Path(folder) / MODEL_FILE, seed)
        ours, theirs = (ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (graph, other))
        pairs = [
            [session.run([EVIDENCE_NAME], {INPUT_NAME: pixels[None]})[0][0] for session in (ours, theirs)]
            for pixels in pictures
        ]
    return np.array([correlation(first, second) for first, second in pairs])


def shuffled(model: Path, target: Path, seed: int) -> Path:
    """Write the graph with the elements of each weight of two or more dimensions in random order."""
    rng = np.random.default_rng(seed)
    graph = onnx.load(model)
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.ndim >= 2 and values.dtype.kind == "f":
            weight.CopyFrom(numpy_helper.from_array(rng.permutation(values.ravel()).reshape(values.shape), weight.name))
    target.write_bytes(graph.SerializeToString())
    return target


def correlation(first: Map, second: Map) -> float:
    """Pearson correlation of two maps; 0 if one of them is flat."""
    if not first.std() or not second.std():
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _sum_in(values: Map, row: int, column: int, half: int) -> float:
    return float(values[max(0, row - half) : row + half, max(0, column - half) : column + half].sum())


def _cover(looked: Looked, row: int, column: int, half: int) -> Pixels:
    """Cover a square of the cell with its mean colour; the cell's outline stays, for its shape is evidence too."""
    covered = looked.pixels.copy()
    square = np.zeros_like(looked.cell)
    square[max(0, row - half) : row + half, max(0, column - half) : column + half] = True
    covered[square & looked.cell] = looked.pixels[looked.cell].mean(axis=0).round()
    return covered


def read(files: Sequence[Path], spec: Preprocessing) -> list[Pixels]:
    """Decode and preprocess files as the service does."""
    return [imaging.preprocess(imaging.decode(file.read_bytes()), spec) for file in files]


def summary(model: LoadedModel, pictures: Sequence[Pixels], seed: int) -> dict[str, object]:
    """Measure **inside** and **occlusion** over pictures."""
    rng = np.random.default_rng(seed)
    looked = [look(model, pixels) for pixels in pictures]
    shares = np.array([inside(one) for one in looked])
    falls = np.array([occlusion(model, one, rng) for one in looked])
    better = falls[:, 0] - falls[:, 1]
    resampled = rng.choice(better, size=(2000, len(better))).mean(axis=1)
    return {
        "cells": len(looked),
        "mass on the cell": round(float(shares[:, 0].mean()), 3),
        "cell's share of the area": round(float(shares[:, 1].mean()), 3),
        "cells with more mass on the cell than its area": round(float((shares[:, 0] > shares[:, 1]).mean()), 3),
        "fall of the margin, strongest square": round(float(falls[:, 0].mean()), 3),
        "fall of the margin, random squares": round(float(falls[:, 1].mean()), 3),
        "difference": round(float(better.mean()), 3),
        "difference, 95 % interval over cells": [round(float(q), 3) for q in np.quantile(resampled, [0.025, 0.975])],
        "cells where the strongest square falls more": round(float((better > 0).mean()), 3),
    }


def main() -> None:
    """Print the figures for ALL and HEM cells as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, required=True, help="folder with all/ and hem/")
    parser.add_argument("--count", type=int, default=200, help="cells, half of each class")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    arguments = parser.parse_args()
    ref: ModelRef = Registry(arguments.models).active()
    model = load(arguments.models, Placement(device="cpu", threads=2, max_batch=4), ref=ref)
    rng = np.random.default_rng(0)
    found = {label: sorted((arguments.cells / label).glob("*")) for label in ("all", "hem")}
    chosen = {label: rng.choice(np.array(files), arguments.count // 2, replace=False) for label, files in found.items()}
    spec = model.manifest.preprocessing
    graph = arguments.models / ref.name / ref.version / MODEL_FILE
    figures: dict[str, object] = {"model": str(ref)}
    for label, files in chosen.items():
        pictures = read(list(files), spec)
        same = np.concatenate([randomised(graph, pictures[:SHUFFLED_CELLS], seed) for seed in range(SHUFFLES)])
        figures[label.upper()] = summary(model, pictures, seed=0) | {
            "correlation with shuffled weights, mean": round(float(same.mean()), 3),
            "correlation with shuffled weights, mean of sizes": round(float(np.abs(same).mean()), 3),
        }
    print(json.dumps(figures, indent=2))  # noqa: T201 - a command's output


if __name__ == "__main__":
    main()
