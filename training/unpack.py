"""Take the weights out of an exported model: what a laboratory needs to teach its last layer anew.

The graph holds them under the network's own names, so nothing but the model's folder is needed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor

from app.core.spec import MODEL_FILE, Manifest
from training.errors import RunError
from training.origin import NOT_STATED, SOURCE_FILE
from training.run import WEIGHTS_FILE

_NETWORK: Final = "network."
_HALF: Final = ".half"
# A buffer that is made from the configuration and not loaded.
_NOT_STORED: Final = frozenset({"black"})


def unpack(folder: Path, out: Path, precision: str | None = None) -> Path:
    """Write an exported model's weights, and where they come from, to a folder of their own.

    Args:
        folder: ``models/<name>/<version>``.
        out: Folder to make, such as ``runs/efficientnet-b3-1.0.0``; must not exist yet.
        precision: Name of a variant; None takes the model itself.

    Returns:
        A safetensors file for ``model.start.file``; values that the graph stores as float16 are those.

    Raises:
        ManifestError: The model can't be read.
        RunError: `out` exists, there is no such variant, or the graph has no weights of a network.
    """
    manifest = Manifest.load(folder)
    if precision is not None and precision not in manifest.variants:
        raise RunError(f"{folder} has no variant {precision}; it has {sorted(manifest.variants) or 'none'}")
    if out.exists():
        raise RunError(f"{out} exists; choose another folder")
    graph = folder / (manifest.variants[precision].file if precision else MODEL_FILE)
    weights = weights_of(onnx.load(graph).graph)
    if not weights:
        raise RunError(f"{graph} holds no weights of a network that leukoscope-train has exported")
    key = f"lineage_{precision}" if precision else "lineage"
    source = {
        "model": f"{manifest.name} {manifest.version}",
        "file": graph.name,
        "sha256": hashlib.sha256(graph.read_bytes()).hexdigest(),
        "licence": manifest.licence["start_weights"],
        "weights_licence": manifest.licence.get("weights", NOT_STATED),
        "lineage": manifest.provenance[key],
    }
    out.mkdir(parents=True)
    (out / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    save_file(weights, out / WEIGHTS_FILE)
    return out / WEIGHTS_FILE


def weights_of(graph: Any) -> dict[str, Tensor]:
    """Return the weights and statistics of the network in an exported graph, by the network's own names."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {}
    for name, values in constants.items():
        own = name.removesuffix(_HALF).removeprefix(_NETWORK)
        if name.startswith(_NETWORK) and own not in _NOT_STORED:
            weights[own] = torch.from_numpy(
                np.array(values, dtype=values.dtype if values.dtype == np.int8 else np.float32)
            )
    # The zero points of 8 bits have lost their names: each stands beside its scale.
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1].startswith(_NETWORK):
            own = node.input[1].removeprefix(_NETWORK).removesuffix("scale") + "zero_point"
            weights[own] = torch.tensor(int(constants[node.input[2]]), dtype=torch.int32)
    return weights
