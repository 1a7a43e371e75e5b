"""Run a model: the `Session` protocol, and ONNX Runtime behind it on the device that was asked for."""

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.core.errors import DeviceMemoryError, InferenceError, ModelIntegrityError
from app.core.spec import EVIDENCE_NAME, FEATURES_NAME, INPUT_NAME, LOGITS_NAME, NOVELTY_NAME, Manifest
from app.cpus import saturates_8_bits
from app.inference.binding import BoundRunner
from app.inference.outputs import Outputs, look
from app.inference.providers import (
    CPU_PROVIDER,
    GPU_PROVIDERS,
    TENSORRT_PROVIDER,
    Placement,
    ProviderList,
    check_provider,
    choose_providers,
    gpu_count,
)

_LOG: Final = logging.getLogger(__name__)
_OUTPUT_AXES: Final = {LOGITS_NAME: 2, FEATURES_NAME: 2, EVIDENCE_NAME: 3, NOVELTY_NAME: 1}
OUTPUT_NAMES: Final = frozenset(_OUTPUT_AXES)
_GPU_MAX_BATCH: Final = 32
# The largest batches that are tried on a CPU, by a thread of its own and for each of several that share one.
_CPU_MAX_BATCH: Final = 8
_CPU_MAX_SHARE: Final = 4
# How ONNX Runtime's allocators say that there is no room.
_MEMORY_SIGNS: Final = ("out of memory", "bad_alloc", "failed to allocate", "bfcarena", "cuda_error_out_of_memory")


class Session(Protocol):
    """A loaded model on one device. Used by one thread at a time."""

    max_batch: int
    """Most pictures in one call of `run`; made smaller when the device has no memory for so many."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs.

        Args:
            images: Shape ``(n, size_px, size_px, 3)``, RGB, 0..255; n is 1..`max_batch`.

        Returns:
            One row for each picture.

        Raises:
            InferenceError: The model failed, or gave an output of another shape.
            DeviceMemoryError: The device has no memory for so many pictures.
        """


class OnnxSession:
    """A model in ONNX Runtime. On a CPU its `run` may be called by several threads at once."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, placement: Placement) -> None:
        self._session = session
        self._spec = manifest.preprocessing
        self._labels = len(manifest.labels)
        self._outputs = [node.name for node in session.get_outputs()]
        self.provider: str = session.get_providers()[0]
        on_gpu = self.provider in GPU_PROVIDERS
        self.max_batch = placement.max_batch or (_GPU_MAX_BATCH if on_gpu else cpu_max_batch(placement))
        # On a GPU each new shape is a search for algorithms, so batches are padded to a few sizes and
        # their buffers stay on the device. A CPU has nothing to search, and padding would cost it real work.
        self._bound = {
            side: BoundRunner(
                session,
                INPUT_NAME,
                (side, side, 3),
                batch_buckets(self.max_batch),
                device=("cuda", placement.gpu_index),
                graphs=placement.engine == "cuda-graph",
            )
            for side in (self._spec.sides_px if on_gpu else ())
        }

    @classmethod
    def create(cls, path: Path, manifest: Manifest, placement: Placement) -> Self:
        """Load a graph on a device; it has not run yet.

        Args:
            path: The graph.
            manifest: What it must look like.
            placement: Where and how it shall run.

        Raises:
            ProviderError: A GPU is demanded and can't be had.
            ModelIntegrityError: The file is no graph, or not one with these inputs and outputs.
        """
        gpu_seen = placement.device != "cpu" and gpu_count() > placement.gpu_index
        shapes = _profile_shapes(manifest.preprocessing.sides_px, placement.max_batch or _GPU_MAX_BATCH)
        providers = choose_providers(placement, gpu_seen, ort.get_available_providers(), shapes)
        raw = _create(path, providers, placement)
        check_provider(placement, gpu_seen, raw.get_providers()[0])
        check_graph([_node(node) for node in raw.get_inputs()], [_node(node) for node in raw.get_outputs()], manifest)
        return cls(raw, manifest, placement)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs; see `Session.run`."""
        return look(images, self._spec, self._outputs, lambda batches: [self._infer(batch) for batch in batches])

    def _infer(self, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        count = len(images)
        try:
            if self._bound:
                arrays = self._bound[images.shape[1]].run(images)
            else:
                arrays = self._session.run(self._outputs, {INPUT_NAME: images})
        except Exception as error:
            if is_out_of_memory(error):
                raise DeviceMemoryError(f"The device has no memory for a batch of {count} pictures.") from error
            raise InferenceError("The model failed on this batch of pictures.") from error
        arrays = [array[:count] for array in arrays]
        check_logits(arrays[self._outputs.index(LOGITS_NAME)], count, self._labels)
        return arrays


def check_logits(logits: NDArray[np.float32], count: int, labels: int) -> None:
    """Refuse logits of another shape than ``(count, labels)``.

    Raises:
        InferenceError: They are.
    """
    if logits.shape != (count, labels):
        raise InferenceError(f"The model gave logits of shape {logits.shape} for {count} pictures.")


def cpu_max_batch(placement: Placement) -> int:
    """Return the largest batch that is tried on a CPU."""
    if placement.callers > 1:  # each of them has a thread
        return _CPU_MAX_BATCH
    return max(_CPU_MAX_BATCH, _CPU_MAX_SHARE * placement.threads)


def batch_buckets(max_batch: int) -> tuple[int, ...]:
    """Return the powers of two below `max_batch`, and `max_batch`."""
    powers = takewhile(lambda size: size < max_batch, (2**exponent for exponent in range(64)))
    return (*powers, max_batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of ONNX Runtime means that an allocation failed."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _MEMORY_SIGNS)


def _profile_shapes(sides_px: tuple[int, ...], max_batch: int) -> dict[str, str]:
    sizes = {
        "min": (1, sides_px[0]),
        "opt": (max(1, max_batch // 2), sides_px[len(sides_px) // 2]),
        "max": (max_batch, sides_px[-1]),
    }
    return {which: f"{INPUT_NAME}:{batch}x{side}x{side}x3" for which, (batch, side) in sizes.items()}


def _create(path: Path, providers: ProviderList, placement: Placement) -> ort.InferenceSession:
    options = ort.SessionOptions()
    if placement.optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = placement.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads may spin between two operators, as is the default: measured on two cores, a lone picture is
    # answered sooner then. But not on after a run, when decoding wants their cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if providers == [CPU_PROVIDER] and saturates_8_bits():
        # A graph of 8 bits stays in floats: its fused kernels would cut sums off.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    # ONNX Runtime prints what goes wrong with a provider; what matters of it is raised or logged here.
    with contextlib.redirect_stdout(io.StringIO()):
        if providers != [CPU_PROVIDER]:
            ort.preload_dlls()  # finds the CUDA and cuDNN wheels; without them the system's are used
        try:
            session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:
            raise ModelIntegrityError(f"{path}: ONNX Runtime can't load it: {error}") from error
    if session.get_providers()[0] != TENSORRT_PROVIDER:  # which leaves to CUDA what it can't run itself
        # Otherwise a CUDA error at run time would quietly make this a CPU session.
        session.disable_fallback()
    return session


@dataclass(frozen=True, slots=True)
class Node:
    """An input or output of a graph.

    Attributes:
        name: As in the graph.
        dtype: NumPy's name of the type.
        shape: None for a dynamic side.
    """

    name: str
    dtype: str
    shape: list[int | None]


def check_graph(inputs: Sequence[Node], outputs: Sequence[Node], manifest: Manifest) -> None:
    """Refuse a graph that is not what its manifest says.

    Raises:
        ModelIntegrityError: Other inputs or outputs.
    """
    side = None if manifest.preprocessing.windows else manifest.preprocessing.size_px
    wanted_inputs = [Node(INPUT_NAME, "uint8", [None, side, side, 3])]
    if list(inputs) != wanted_inputs:
        raise ModelIntegrityError(f"The graph's input is {list(inputs)}; the manifest wants {wanted_inputs}.")
    known = {name: ("float32", axes) for name, axes in _OUTPUT_AXES.items()}
    found = {node.name: (node.dtype, len(node.shape)) for node in outputs}
    logits = [node.shape for node in outputs if node.name == LOGITS_NAME]
    if logits != [[None, len(manifest.labels)]] or not found.items() <= known.items():
        raise ModelIntegrityError(
            f"The graph's outputs are {found}; wanted are {LOGITS_NAME} of shape (batch, {len(manifest.labels)}), "
            f"and, if at all, others of {known}, each with its type and number of axes as there."
        )
    if manifest.novelty is not None and NOVELTY_NAME not in found:
        raise ModelIntegrityError(
            f"The manifest has a threshold for the output {NOVELTY_NAME}, but the graph's outputs are {sorted(found)}."
        )


def _node(node: ort.NodeArg) -> Node:
    """Read a node as ONNX Runtime describes it: dynamic sides have names, and types read ``tensor(float)``."""
    dtype = node.type.removeprefix("tensor(").removesuffix(")").replace("float", "float32")
    return Node(node.name, dtype, [side if isinstance(side, int) else None for side in node.shape])
