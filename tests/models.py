"""A tiny real model for tests: an ONNX graph of a few kilobytes in a complete model folder."""

import base64
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from app.core import imaging
from app.core.parts import Golden, Preprocessing, ReviewBand
from app.core.spec import CARD_FILE, MANIFEST_FILE, MODEL_FILE, REPORT_FILE, Manifest
from training.data.drawn import draw_cell

NAME = "tiny"
VERSION = "1.0.0"
SIZE_PX = 48
PREPROCESSING = Preprocessing(
    crop_px=450, size_px=SIZE_PX, resample="bilinear", mean=(30.0, 20.0, 35.0), std=(60.0, 40.0, 60.0)
)


def write_models(
    root: Path,
    *,
    name: str = NAME,
    version: str = VERSION,
    seed: int = 0,
    active: bool = True,
    scores_novelty: bool = False,
    **changes: Any,
) -> Path:
    """Write ``<name>/<version>/`` and ``active.json`` under `root`.

    Args:
        root: The folder models/; made if it is not there.
        name: Of the model.
        version: Of the model.
        seed: Of its weights.
        active: Whether ``active.json`` shall name it.
        scores_novelty: Whether its graph shall have the output ``novelty``.
        changes: Fields of the manifest to replace.

    Returns:
        `root`.
    """
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(build_graph(seed, novelty=scores_novelty).SerializeToString())
    (folder / REPORT_FILE).write_text(json.dumps({"split": "none", "balanced_accuracy": 0.5}), encoding="utf-8")
    (folder / CARD_FILE).write_text("# A model for tests\n", encoding="utf-8")
    manifest = dataclasses.replace(make_manifest(folder, name, version), **changes)
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    if active:
        (root / "active.json").write_text(json.dumps({"name": name, "version": version}), encoding="utf-8")
    return root


def build_graph(
    seed: int = 0, *, size_px: int = SIZE_PX, labels: int = 2, output: str = "logits", novelty: bool = False
) -> onnx.ModelProto:
    """Build image → normalise → convolution → mean over the picture → logits, features and evidence.

    With `novelty` there is such an output, too: the mean of all bytes, since a cut-out cell is mostly black.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "mean": np.array(PREPROCESSING.mean, dtype=np.float32),
        "std": np.array(PREPROCESSING.std, dtype=np.float32),
        "kernel": rng.normal(0, 0.3, size=(4, 3, 3, 3)).astype(np.float32),
        "head": rng.normal(0, 2.0, size=(4, labels)).astype(np.float32),
        "bias": np.zeros(labels, dtype=np.float32),
    }
    # What each channel adds to the margin of the first label over the last.
    weights["margin"] = (weights["head"][:, 0] - weights["head"][:, -1]).reshape(1, 4, 1, 1)
    weights["channel"] = np.array([1])
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["edges"], strides=[2, 2]),
        helper.make_node("Relu", ["edges"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "head", "bias"], [output]),
        helper.make_node("Conv", ["active", "margin"], ["map"]),
        helper.make_node("Squeeze", ["map", "channel"], ["evidence"]),
    ]
    outputs = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", labels]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("evidence", TensorProto.FLOAT, ["batch", None, None]),
    ]
    if novelty:
        nodes.append(helper.make_node("ReduceMean", ["float"], ["novelty"], axes=[1, 2, 3], keepdims=0))
        outputs.append(helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["batch"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size_px, size_px, 3])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def make_manifest(folder: Path, name: str = NAME, version: str = VERSION) -> Manifest:
    """Make the manifest of a folder whose other files are written."""
    return Manifest(
        name=name,
        version=version,
        architecture="tiny",
        precision="fp32",
        labels=("ALL", "HEM"),
        preprocessing=PREPROCESSING,
        temperature=1.5,
        review=ReviewBand(low=0.4, high=0.6),
        files={
            file: hashlib.sha256((folder / file).read_bytes()).hexdigest()
            for file in (MODEL_FILE, REPORT_FILE, CARD_FILE)
        },
        golden=_golden(folder / MODEL_FILE),
        split="none",
        provenance={"data": "drawn"},
        licence={"spdx": "Apache-2.0"},
    )


def _golden(model: Path) -> Golden:
    buffer = io.BytesIO()
    draw_cell("ALL", seed=7).save(buffer, format="PNG")
    array = imaging.preprocess(imaging.decode(buffer.getvalue()), PREPROCESSING)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": array[None]})[0][0]
    return Golden(
        image_png=base64.b64encode(buffer.getvalue()).decode("ascii"),
        input_sha256=hashlib.sha256(array.tobytes()).hexdigest(),
        logits=tuple(float(value) for value in logits),
        atol=1e-4,
    )
