"""Run a model in OpenVINO, the extra `openvino`: in bfloat16 where the processor has it, which is faster."""

import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from app.core.errors import DeviceMemoryError, InferenceError, ModelIntegrityError, ProviderError
from app.core.spec import LOGITS_NAME, Manifest
from app.cpus import saturates_8_bits
from app.inference.outputs import Outputs, look
from app.inference.providers import OPENVINO_PROVIDER, Placement
from app.inference.session import (
    OUTPUT_NAMES,
    Node,
    batch_buckets,
    check_graph,
    check_logits,
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
# A call has some portions ready beside the one that runs, so that no stream waits for Python.
_AHEAD: Final = 4
_COMPILE_THREADS: Final = "openvino-compile"

Shape = tuple[int, int]
"""Batch size and side."""


class OpenVinoSession:
    """A model in OpenVINO. Its `run` may be called by as many threads at once as it has streams.

    The graph is compiled once for each shape: one for any shape at all would be a quarter slower. Without
    windows those are batches of 1, 2 and 4, and other batches run in portions of these sizes, so that nothing is
    padded. With windows they are single pictures of each side.

    Attributes:
        max_batch: As in `Session`.
        provider: As in `Session`.
    """

    def __init__(self, compiled: "Mapping[Shape, ov.CompiledModel]", manifest: Manifest, max_batch: int) -> None:
        """Make a session.

        Args:
            compiled: The graph, by batch size and side that it is compiled for; each side has a batch of 1.
            manifest: Of the model.
            max_batch: Most pictures in one call.
        """
        self._tensor = _package().Tensor
        self._labels = len(manifest.labels)
        self._spec = manifest.preprocessing
        self._names = [_output_name(port) for port in next(iter(compiled.values())).outputs]
        self._sizes = sorted({size for size, _ in compiled}, reverse=True)
        self._requests: dict[Shape, SimpleQueue[ov.InferRequest]] = {shape: SimpleQueue() for shape in compiled}
        for shape, model in compiled.items():
            for _ in range(_AHEAD * int(model.get_property("NUM_STREAMS"))):
                self._requests[shape].put(model.create_infer_request())
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
            ProviderError: The package is not installed, or the processor can't compute in that precision.
            ModelIntegrityError: The file is no graph, or not one with these inputs and outputs.
        """
        core = _package().Core()
        if placement.precision == "bf16" and "BF16" not in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise ProviderError("bf16 was asked for, but this processor has no instructions for it.")
        if "int8" in {placement.precision, manifest.precision} and saturates_8_bits():
            # Measured on such a processor: a fifth of the labels of efficientnet-lite0 were others.
            raise ProviderError(
                "8 bits were asked for, but this processor has no VNNI or AMX: it cuts large sums off, and would "
                "answer wrongly. The model without LEUKOSCOPE_PRECISION=int8 runs on it."
            )
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if placement.precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": placement.threads,
            "NUM_STREAMS": streams,
            # Decoding uses the same cores; a thread that is bound to one would wait for it.
            "ENABLE_CPU_PINNING": False,
        }
        max_batch = placement.max_batch or cpu_max_batch(placement)
        sides = manifest.preprocessing.sides_px
        one_by_one = len(sides) > 1 or (streams == 1 and placement.threads > 1)
        largest = 1 if one_by_one else min(_MAX_PORTION, max_batch)
        sizes = [size for size in batch_buckets(_MAX_PORTION) if size <= largest]
        shapes = [(size, side) for size in sizes for side in sides]
        with ThreadPoolExecutor(placement.threads, thread_name_prefix=_COMPILE_THREADS) as pool:
            compiled = pool.map(lambda shape: _compile(core, path, manifest, shape, settings), shapes)
            return cls(dict(zip(shapes, compiled, strict=True)), manifest, max_batch)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs; see `Session.run`."""
        return look(images, self._spec, self._names, self._infer)

    def _infer(self, batches: Sequence[NDArray[np.uint8]]) -> list[list[NDArray[np.float32]]]:
        said: list[list[list[NDArray[np.float32]]]] = [[] for _ in batches]
        running: deque[_Run] = deque()
        try:
            for index, batch in enumerate(batches):
                for portion in self._portions(batch):
                    if len(running) == _AHEAD:
                        self._end(running, said)
                    running.append(self._start(index, portion))
            while running:
                self._end(running, said)
        except InferenceError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise DeviceMemoryError(f"There is no memory for {sum(map(len, batches))} pictures.") from error
            raise InferenceError("The model failed on this batch of pictures.") from error
        finally:
            for run in running:
                with suppress(Exception):  # the first fault is told
                    run.request.wait()
                self._requests[run.shape].put(run.request)
        return [
            portions[0] if len(portions) == 1 else [np.concatenate(arrays) for arrays in zip(*portions, strict=True)]
            for portions in said
        ]

    def _portions(self, batch: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        start = 0
        while start < len(batch):
            size = next(size for size in self._sizes if size <= len(batch) - start)
            yield batch[start : start + size]
            start += size

    def _start(self, index: int, images: NDArray[np.uint8]) -> "_Run":
        shape = images.shape[0], images.shape[1]
        if shape not in self._requests:
            raise InferenceError(f"The model was not compiled for pictures of shape {images.shape[1:]}.")
        request = self._requests[shape].get()
        try:
            tensor = self._tensor(images, shared_memory=True)
            request.set_input_tensor(tensor)
            request.start_async()
        except Exception:
            self._requests[shape].put(request)
            raise
        return _Run(index, shape, request, tensor)

    def _end(self, running: "deque[_Run]", said: list[list[list[NDArray[np.float32]]]]) -> None:
        """Wait for the first of what runs, and note what it says."""
        run = running[0]
        run.request.wait()
        arrays = [np.array(run.request.get_output_tensor(index).data) for index in range(len(self._names))]
        check_logits(arrays[self._names.index(LOGITS_NAME)], run.shape[0], self._labels)
        said[run.index].append(arrays)
        self._requests[run.shape].put(running.popleft().request)


@dataclass(frozen=True, slots=True)
class _Run:
    """A portion on its way through the model.

    Attributes:
        index: Of its batch.
        shape: Its own.
        request: Of that shape.
        images: Kept until the run's end, for the model reads them where they are.
    """

    index: int
    shape: Shape
    request: "ov.InferRequest"
    images: "ov.Tensor"


def _package() -> ModuleType:
    # The package tells its makers of each import, over the network, where openvino-telemetry can be imported.
    # None is Python's own way to say that a module can't be; the package then does without.
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]  # typed as if there were modules only
    try:
        import openvino  # noqa: PLC0415 - an option, and it takes a while to load
    except ImportError as error:
        raise ProviderError(
            "OpenVINO was asked for, but it is not installed: pip install 'leukoscope[openvino]'"
        ) from error
    module: ModuleType = openvino
    return module


def _compile(
    core: "ov.Core", path: Path, manifest: Manifest, shape: Shape, settings: Mapping[str, object]
) -> "ov.CompiledModel":
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ModelIntegrityError(f"{path}: OpenVINO can't load it: {error}") from error
    outputs = [_node(port, _output_name(port)) for port in model.outputs]
    check_graph([_node(port, port.any_name) for port in model.inputs], outputs, manifest)
    size, side = shape
    model.reshape([size, side, side, 3])
    return core.compile_model(model, _DEVICE, settings)


def _output_name(port: "ov.Output") -> str:
    """Return an output's name as in the graph: OpenVINO adds those of operators that it has found to do nothing."""
    return next(iter(sorted(OUTPUT_NAMES & set(port.names))), str(port.any_name))


def _node(port: "ov.Output", name: str) -> Node:
    sides = [side.get_length() if side.is_static else None for side in port.partial_shape]
    return Node(name, port.element_type.to_dtype().name, sides)
