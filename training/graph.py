"""The graph that is served: a network with its scaling, written to ONNX with float16-stored weights."""

import copy
import warnings
from pathlib import Path
from typing import Any, Generic, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from torch import Tensor, nn

from app.core.parts import Preprocessing
from app.core.spec import EVIDENCE_NAME, FEATURES_NAME, INPUT_NAME, LOGITS_NAME, NOVELTY_NAME
from training.errors import RunError
from training.module import Normalise
from training.novelty.score import Novelty
from training.novelty.stages import StageMeans
from training.zoo.classifier import Classifier, Values
from training.zoo.padding import fix_padding
from training.zoo.quantised import QuantisedConv
from training.zoo.rounding import TRANSLATIONS

OUTPUT_NAMES = (LOGITS_NAME, FEATURES_NAME, EVIDENCE_NAME, NOVELTY_NAME)


class Answers(NamedTuple, Generic[Values]):
    """What the served graph says of a batch, in the order of `OUTPUT_NAMES`.

    Attributes:
        logits: Shape ``(batch, 2)``.
        features: What the last linear layer takes, shape ``(batch, width)``.
        evidence: Where the picture speaks for ALL (positive) or HEM (negative), shape ``(batch, h, w)``.
        novelty: How unlike the training cells the picture is, shape ``(batch,)``.
    """

    logits: Values
    features: Values
    evidence: Values
    novelty: Values


class Served(nn.Module):
    """A network with the service's interface: pictures in, the scaling inside, novelty scored.

    Args:
        network: In evaluation mode.
        spec: Its preprocessing.
        novelty: Scores the means of its stages.
    """

    def __init__(self, network: Classifier, spec: Preprocessing, novelty: Novelty) -> None:
        super().__init__()
        self.network = network
        self.novelty = novelty
        self.stages = StageMeans(network.backbone)
        self.spec = spec
        self.normalise = Normalise(spec)

    def forward(self, image: Tensor) -> Answers[Tensor]:
        """Return logits, features, evidence and novelty of pictures ``(batch, size, size, 3)``, uint8."""
        explained = self.network.explain(self.normalise(image.permute(0, 3, 1, 2)))
        return Answers(*explained, self.novelty(self.stages.take()))


def round_to_half(network: Classifier) -> Classifier:
    """Round every weight and statistic to the nearest float16, kept as float32; in place. Scales of 8 bits stay."""
    exact = {
        id(tensor) for module in network.modules() if isinstance(module, QuantisedConv) for tensor in module.scales()
    }
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point() and id(tensor) not in exact:
                tensor.copy_(tensor.half().float())
    return network


def write_onnx(served: nn.Module, spec: Preprocessing, file: Path, *, half: bool = True) -> None:
    """Export to ONNX with a dynamic batch axis and, unless told otherwise, float16-stored weights.

    Where the preprocessing has windows, height and width are dynamic too.
    """
    example = torch.zeros((2, spec.size_px, spec.size_px, 3), dtype=torch.uint8)
    axes: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if spec.windows is not None:
        served = copy.deepcopy(served)
        fix_padding(served)
        step = spec.windows.step_px
        # Two names, for one would demand squares of what looks at each axis by itself.
        axes |= {1 + axis: step * torch.export.Dim(name, min=1) for axis, name in enumerate(("rows", "columns"))}
    with warnings.catch_warnings():
        # The exporter warns of its own dependencies' deprecations.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            served,
            (example,),
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes=(axes,),
            dynamo=True,
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RunError("the exporter gave no program")
    model = tidy(program.model)
    if half:
        store_half(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)


def tidy(graph: ir.Model) -> onnx.ModelProto:
    """Fold what is constant, and drop what the exporter noted of its own sources and paths.

    Batch norms stay: folded into convolutions by the exporter's own optimiser, the weights would
    no longer be the float16 numbers that they were rounded to. ONNX Runtime folds them at load.
    """
    optimizer.fold_constants(graph)
    optimizer.remove_unused_nodes(graph)
    ClearMetadataAndDocStringPass()(graph)
    model: onnx.ModelProto = ir.serde.serialize_model(graph)
    del model.graph.value_info[:]
    return model


def store_half(model: onnx.ModelProto) -> None:
    """Store each float32 initializer as float16 with a cast behind it, in place.

    ONNX Runtime folds the casts away when it loads the graph. A value that float16 can't hold
    exactly stays as it is.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < 2 or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)
        )
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
