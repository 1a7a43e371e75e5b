"""Run a model in OpenVINO, the extra `openvino`: in bfloat16 where the processor has it, which is faster."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from app.core.errors import DeviceMemoryError, InferenceError, ModelIntegrityError, ProviderError
from app.core.spec import LOGITS_NAME, Manifest
from app.inference.providers import OPENVINO_PROVIDER, Placement
from app.inference.session import (
    OUTPUT_NAMES,
    Node,
    Outputs,
    batch_buckets,
    check_graph,
    cpu_max_batch,
    is_out_of_memory,
)

if TYPE_CHECKING:
    import openvino as ov

_LOG: Final = logging.getLogger(__name__)
_DEVICE: Final = "CPU"
_TELEMETRY: Final = "openvino_telemetry"
# Measured on EfficientNet-B3: 8 pictures at once are hardly faster than 4, and take twice as long to come.
_MAX_PORTION: Final = 4


class OpenVinoSession:
    """A model in OpenVINO. Its `run` may be called by as many threads at once as it has streams.

    The graph is compiled once for each batch size of 1, 2 and 4: a graph for any size at all would be a
    quarter slower. Other batches run in portions of these sizes, so that nothing is padded.

    Attributes:
        max_batch: As in `Session`.
        provider: As in `Session`.
    """

    def __init__(self, compiled: "dict[int, ov.CompiledModel]", manifest: Manifest, max_batch: int) -> None:
        """Make a session.

        Args:
            compiled: The graph, by the batch size that it is compiled for; 1 is among them.
            manifest: Of the model.
            max_batch: Most pictures in one call.
        """
        self._labels = len(manifest.labels)
        self._names = [_output_name(port) for port in compiled[1].outputs]
        self._sizes = sorted(compiled, reverse=True)
        self._requests: dict[int, SimpleQueue[ov.InferRequest]] = {size: SimpleQueue() for size in compiled}
        for size, model in compiled.items():
            for _ in range(int(model.get_property("NUM_STREAMS"))):
                self._requests[size].put(model.create_infer_request())
        self.max_batch = max_batch
        self.provider: str = OPENVINO_PROVIDER

    @classmethod
    def create(cls, path: Path, manifest: Manifest, placement: Placement, *, streams: int) -> Self:
        """Compile a graph; it has not run yet.

        Args:
            path: The graph, in ONNX.
            manifest: What it must look like.
            placement: How it shall run.
            streams: How many calls run at once, sharing the threads; 1 gives all of them to each call.

        Raises:
            ProviderError: The package is not installed, or bfloat16 is asked for and the processor has none.
            ModelIntegrityError: The file is no graph, or not one with these inputs and outputs.
        """
        core = _core()
        if placement.precision == "bf16" and "BF16" not in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise ProviderError("bf16 was asked for, but this processor has no instructions for it.")
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if placement.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": placement.threads,
            "NUM_STREAMS": streams,
            # Decoding uses the same cores; a thread that is bound to one would wait for it.
            "ENABLE_CPU_PINNING": False,
        }
        max_batch = placement.max_batch or cpu_max_batch(placement)
        largest = 1 if streams == 1 and placement.threads > 1 else min(_MAX_PORTION, max_batch)
        sizes = [size for size in batch_buckets(_MAX_PORTION) if size <= largest]
        compiled = {size: _compile(core, path, manifest, size, settings) for size in sizes}
        return cls(compiled, manifest, max_batch)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs; see `Session.run`."""
        portions, start = [], 0
        while start < len(images):
            size = next(size for size in self._sizes if size <= len(images) - start)
            portions.append(self._infer(images[start : start + size]))
            start += size
        return Outputs.joined(portions)

    def _infer(self, images: NDArray[np.uint8]) -> Outputs:
        queue = self._requests[len(images)]
        request = queue.get()
        try:
            results = request.infer([images], share_inputs=True)
            arrays = {name: np.array(results[index]) for index, name in enumerate(self._names)}
        except Exception as error:
            if is_out_of_memory(error):
                raise DeviceMemoryError(f"There is no memory for a batch of {len(images)} pictures.") from error
            raise InferenceError("The model failed on this batch of pictures.") from error
        finally:
            queue.put(request)
        if arrays[LOGITS_NAME].shape != (len(images), self._labels):
            raise InferenceError(
                f"The model gave logits of shape {arrays[LOGITS_NAME].shape} for {len(images)} pictures."
            )
        return Outputs(**arrays)


def _core() -> "ov.Core":
    # The package tells its makers of each import, over the network, where openvino-telemetry can be imported.
    # None is Python's own way to say that a module can't be; the package then does without.
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # typed as if there were modules only
    try:
        import openvino  # noqa: PLC0415 - an option, and it takes a while to load
    except ImportError as error:
        raise ProviderError(
            "OpenVINO was asked for, but it is not installed: pip install 'leukoscope[openvino]'"
        ) from error
    return openvino.Core()


def _compile(
    core: "ov.Core", path: Path, manifest: Manifest, size: int, settings: Mapping[str, object]
) -> "ov.CompiledModel":
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ModelIntegrityError(f"{path}: OpenVINO can't load it: {error}") from error
    outputs = [_node(port, _output_name(port)) for port in model.outputs]
    check_graph([_node(port, port.any_name) for port in model.inputs], outputs, manifest)
    side = manifest.preprocessing.size_px
    model.reshape([size, side, side, 3])
    return core.compile_model(model, _DEVICE, settings)


def _output_name(port: "ov.Output") -> str:
    """Return an output's name as in the graph: OpenVINO adds those of operators that it has found to do nothing."""
    return next(iter(sorted(OUTPUT_NAMES & set(port.names))), str(port.any_name))


def _node(port: "ov.Output", name: str) -> Node:
    sides = [side.get_length() if side.is_static else None for side in port.partial_shape]
    return Node(name, port.element_type.to_dtype().name, sides)
