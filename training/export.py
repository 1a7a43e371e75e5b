"""Export a judged run to a model folder that the service can serve."""

import base64
import hashlib
import io
import json
import re
import tempfile
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.core.imaging import decode, preprocess
from app.core.parts import Golden, Novelty, Preprocessing, ReviewBand
from app.core.postprocess import softmax
from app.core.spec import CARD_FILE, MANIFEST_FILE, MODEL_FILE, Manifest
from app.core.spec import REPORT_FILE as MODEL_REPORT_FILE
from training.card import model_card
from training.config import DataConfig
from training.data.dataset import Data
from training.data.drawn import draw_cell
from training.data.labels import ALL, LABELS
from training.errors import ParityError, RunError
from training.folder import read_report, write_report
from training.graph import Answers, Served, round_to_half, write_onnx
from training.licence import licences
from training.metrics import figures
from training.novelty.judge import describe_flagged, draw_pictures, judge
from training.novelty.score import Novelty as NoveltyScore
from training.origin import SOURCE_FILE
from training.parity import check_parity, onnx_logits, onnx_outputs
from training.quantise import calibration_cells, quantise
from training.run import NOVELTY_FILE, REPORT_FILE, Run
from training.zoo.quantised import is_quantised

Precision = Literal["fp32", "int8"]

_PARITY_CELLS: Final = 64
_METRIC_TOLERANCE: Final = 2e-3
_GOLDEN_SEED: Final = 20190401
# Room for a GPU's order of summation; a wrong model, filter or channel order is off by far more.
_GOLDEN_ATOL: Final = 5e-3


def export(run: Run, models: Path, version: str, *, precision: Precision = "fp32") -> Path:
    """Write ``models/<name>/<version>/``, whole or not at all.

    With ``fp32`` the weights are rounded to float16, which halves the file; the arithmetic is
    float32. With ``int8`` the convolutions compute with 8 bits (`training.quantise`), as they do
    anyhow in a run that was quantised before its head was taught.

    Args:
        run: A fitted and evaluated run.
        models: Folder of all models.
        version: Semantic version; must not exist yet.
        precision: Of the arithmetic.

    Returns:
        The new folder.

    Raises:
        RunError: The run has not been evaluated, or the version exists.
        ParityError: ONNX Runtime does not reproduce the network's logits on cells of the test part,
            or its figures on all of them; for ``int8`` the loss is stated instead.
    """
    config = run.config()
    target = models / config.name / version
    if target.exists():
        raise RunError(f"{target} exists; choose another version")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        folder = Path(scratch) / version
        folder.mkdir()
        report = write_graph(run, folder / MODEL_FILE, precision)
        write_report(folder / MODEL_REPORT_FILE, report)
        licence = licences(config, _used(run.load_data()))
        card = model_card(config, report, version, licence)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        manifest = _manifest(run, report, version, folder, licence)
        (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        folder.rename(target)
    return target


def write_graph(run: Run, file: Path, precision: Precision = "fp32") -> dict[str, Any]:
    """Write a run's graph, and measure it.

    Args:
        run: A fitted and evaluated run.
        file: To write.
        precision: See `export`.

    Returns:
        The run's report, with figures of the graph itself under ``export``.

    Raises:
        RunError: See `export`.
        ParityError: See `export`.
    """
    report = _read_report(run)
    novelty = NoveltyScore.load(run.folder / NOVELTY_FILE)
    served = Served(round_to_half(run.load_network()), run.config().input.spec(), novelty).eval()
    data = run.load_data()
    parity = _write_graph(served, file, data, precision)
    answers = _answers(file, data, served.spec)
    report["export"] = parity | _judge_export(answers, data, report, precision)
    report["novelty"] = _judge_novelty(file, answers, run, data, report)
    return report


def _write_graph(served: Served, file: Path, data: Data, precision: Precision) -> dict[str, Any]:
    """Write the graph and say how far it is from the network."""
    rounded = is_quantised(served)
    write_onnx(served, served.spec, file, half=precision == "fp32")
    parity = asdict(check_parity(served, file, _parity_cells(data), served.spec, rounded=rounded))
    if rounded or precision == "fp32":
        return {"precision": "int8" if rounded else precision, "bytes": file.stat().st_size, "parity": parity}
    cells = calibration_cells(data.inputs, data.split.train)
    quantise(file, file, cells, served.spec)
    return {
        "precision": precision,
        "bytes": file.stat().st_size,
        "calibration": f"{len(cells)} cells of the training part",
        "parity_before_quantising": parity,
    }


def _answers(file: Path, data: Data, spec: Preprocessing) -> dict[str, Answers[NDArray[np.float32]]]:
    """What the graph that will be served says of validation and, where there are any, test cells."""
    parts = {"validation": data.split.validation, "test": data.split.test}
    return {part: onnx_outputs(file, data.inputs[rows], spec) for part, rows in parts.items() if len(rows)}


def _judge_novelty(
    file: Path, answers: dict[str, Answers[NDArray[np.float32]]], run: Run, data: Data, report: dict[str, Any]
) -> dict[str, Any]:
    """Choose the threshold anew for the graph that will be served: rounding and 8 bits move its scores a little."""
    count = report["novelty"]["kinds"][0]["pictures"]
    spec = run.config().input.spec()
    drawn = draw_pictures(data, run.index().parent, spec, count)
    of_pictures = {kind: onnx_outputs(file, images, spec).novelty for kind, images in drawn.items()}
    judged = judge(answers["validation"].novelty, of_pictures)
    if "test" in answers:
        return describe_flagged(judged, answers["test"].novelty > judged["threshold"], data.subjects[data.split.test])
    # The runs that judged this one have flagged their test cells.
    earlier = report["novelty"]
    judged["cells_flagged"]["test"] = earlier["cells_flagged"]["test"]
    return judged | {"subjects": earlier["subjects"]}


def next_version(folder: Path) -> str:
    """Return the version one minor step above the highest in a model's folder, or 1.0.0."""
    found = [re.fullmatch(r"(\d+)\.(\d+)\.\d+", path.name) for path in folder.glob("*")]
    numbers = [(int(match[1]), int(match[2])) for match in found if match]
    if not numbers:
        return "1.0.0"
    major, minor = max(numbers)
    return f"{major}.{minor + 1}.0"


def _parity_cells(data: Data) -> NDArray[np.uint8]:
    """Some cells of the test part, or without one of the validation part, evenly over it."""
    rows = data.split.test if len(data.split.test) else data.split.validation
    return np.ascontiguousarray(data.inputs[rows[:: max(1, len(rows) // _PARITY_CELLS)]][:_PARITY_CELLS])


def _used(data: Data) -> pl.DataFrame:
    return data.cells[np.concatenate(list(data.split.parts().values()))]


def _manifest(run: Run, report: dict[str, Any], version: str, folder: Path, licence: dict[str, str]) -> Manifest:
    config = run.config()
    files = {name: _sha256(folder / name) for name in (MODEL_FILE, MODEL_REPORT_FILE, CARD_FILE)}
    band = report["review_band"]
    return Manifest(
        name=config.name,
        version=version,
        architecture=config.model.network,
        precision=report["export"]["precision"],
        labels=LABELS,
        preprocessing=config.input.spec(),
        temperature=report["temperature"],
        review=ReviewBand(low=band["low"], high=band["high"]),
        files=files,
        golden=golden(folder / MODEL_FILE, config.input.spec()),
        split=report["split"]["name"],
        provenance={
            "data": licence["data"],
            "split_sha256": report["split"]["sha256"],
            "lineage": lineage(config),
            "software": {name: installed_version(name) for name in ("leukoscope", "torch", "timm", "onnx")},
        },
        novelty=Novelty(method=report["novelty"]["method"], threshold=report["novelty"]["threshold"]),
        licence=licence,
    )


def lineage(config: DataConfig) -> list[dict[str, Any]]:
    """Return a run's configuration and its start file's hash, then those of the run or model that file is of.

    Raises:
        RunError: A start file is no longer there.
    """
    file = config.model.start.file
    entry: dict[str, Any] = {"configuration": config.model_dump(mode="json")}
    if file is None:
        return [entry]
    if not file.is_file():
        raise RunError(f"{file}: the start weights are gone; the manifest names them by their hash")
    entry["start_file_sha256"] = _sha256(file)
    source = file.parent / SOURCE_FILE
    if source.is_file():
        taken = read_report(source)
        entry["taken_from"] = {name: taken[name] for name in ("model", "file", "sha256")}
        return [entry, *taken["lineage"]]
    earlier = Run(file.parent).any_config()
    return [entry, *(lineage(earlier) if earlier else [])]


def golden(model: Path, spec: Preprocessing) -> Golden:
    """Draw a cell, run it through the exported graph, and store both."""
    buffer = io.BytesIO()
    draw_cell("ALL", _GOLDEN_SEED).save(buffer, format="PNG", optimize=True)
    pixels = preprocess(decode(buffer.getvalue()), spec)
    logits = onnx_logits(model, pixels[None], spec)[0]
    return Golden(
        image_png=base64.b64encode(buffer.getvalue()).decode("ascii"),
        input_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
        logits=tuple(float(value) for value in logits),
        atol=_GOLDEN_ATOL,
    )


def _judge_export(
    answers: dict[str, Answers[NDArray[np.float32]]], data: Data, report: dict[str, Any], precision: Precision
) -> dict[str, Any]:
    """Measure what the graph that will be served says of the whole test part, if there is one.

    Raises:
        RunError: The loss of 8 bits is asked for without a test part.
    """
    if "test" not in answers:
        if precision != "fp32":
            raise RunError("the loss of 8 bits can't be stated without a test part; export a run that has one")
        return {"test": None}
    probability = softmax(answers["test"].logits, report["temperature"])[:, ALL]
    judged = figures(probability, data.targets[data.split.test] == ALL)
    test = {name: judged[name] for name in ("weighted_f1", "auroc", "accuracy", "ece")}
    if precision == "fp32":
        _check_figures(test, report)
        return {"test": test}
    return {"test": test, "loss": {name: report["test"][name] - value for name, value in test.items()}}


def _check_figures(exported: dict[str, float], report: dict[str, Any]) -> None:
    """Refuse a graph that is not as good as the network that was judged; its weights are rounded.

    Raises:
        ParityError: A figure differs by more than 0.002.
    """
    for name, value in exported.items():
        if abs(value - report["test"][name]) > _METRIC_TOLERANCE:
            raise ParityError(f"{name} of the exported graph is {value}, of the network {report['test'][name]}")


def _read_report(run: Run) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((run.folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{run.folder} has no report; evaluate the run first") from error
    return report


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
