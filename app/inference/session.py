"""Run a model: the `Session` protocol, and ONNX Runtime behind it on the device that was asked for."""

import contextlib
import ctypes
import io
import logging
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.core.errors import InferenceError, ModelIntegrityError, ProviderError
from app.core.spec import Manifest
from app.settings import Device

CPU_PROVIDER: Final = "CPUExecutionProvider"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
INPUT_NAME: Final = "image"
LOGITS: Final = "logits"
FEATURES: Final = "features"
EVIDENCE: Final = "evidence"

_LOG: Final = logging.getLogger(__name__)
_OUTPUT_AXES: Final = {LOGITS: 2, FEATURES: 2, EVIDENCE: 3}
_DEFAULT_MAX_BATCH: Final = {CPU_PROVIDER: 4, CUDA_PROVIDER: 32}


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a model says of some pictures. What an older model does not give is None.

    Attributes:
        logits: Shape ``(n, labels)``, in the order of the manifest's labels.
        features: The penultimate layer's output, shape ``(n, width)``.
        evidence: Where the model saw reasons: shape ``(n, height, width)`` over the picture's crop,
            positive for ALL, negative for HEM.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None = None
    evidence: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def row(self, index: int) -> "Outputs":
        """Return what is said of one picture: the same arrays without their first axis."""
        return Outputs(
            self.logits[index],
            None if self.features is None else self.features[index],
            None if self.evidence is None else self.evidence[index],
        )


class Session(Protocol):
    """A loaded model. Used by one thread at a time."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""

    @property
    def max_batch(self) -> int:
        """Most pictures in one call of `run`."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs.

        Args:
            images: Shape ``(n, size_px, size_px, 3)``, RGB, 0..255; n is 1..`max_batch`.

        Returns:
            One row for each picture.

        Raises:
            InferenceError: The model failed, or gave an output of another shape.
        """


class OnnxSession:
    """A model in ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, max_batch: int) -> None:
        self._session = session
        self._size_px = manifest.preprocessing.size_px
        self._labels = len(manifest.labels)
        self._outputs = [node.name for node in session.get_outputs()]
        self.provider: str = session.get_providers()[0]
        self.max_batch = max_batch or _DEFAULT_MAX_BATCH.get(self.provider, 1)
        # On CUDA each new shape is a search for algorithms, so batches are padded to a few sizes.
        # A CPU has nothing to search, and padding would cost it real work.
        self._padded = self.provider == CUDA_PROVIDER
        self._buckets = batch_buckets(self.max_batch)

    @classmethod
    def open(
        cls, path: Path, manifest: Manifest, *, device: Device, gpu_index: int, threads: int, max_batch: int
    ) -> Self:
        """Load a graph on a device and warm it.

        Args:
            path: The ``model.onnx``.
            manifest: What the graph must look like.
            device: ``auto`` takes a GPU where there is one, and says so if it can't.
            gpu_index: Which GPU.
            threads: CPU threads, 1 or more.
            max_batch: Largest batch; 0 chooses by device.

        Raises:
            ProviderError: `device` is ``cuda`` and CUDA does not run.
            ModelIntegrityError: The file is no graph, or not one with these inputs and outputs.
        """
        gpu_seen = device != "cpu" and gpu_count() > gpu_index
        providers = choose_providers(device, gpu_seen, ort.get_available_providers(), gpu_index)
        raw = _create(path, providers, threads)
        check_provider(device, gpu_seen, raw.get_providers()[0])
        _check_graph(raw, manifest)
        session = cls(raw, manifest, max_batch)
        try:
            session.warm_up()
        except InferenceError as error:
            # Some CUDA libraries are looked for only when the first batch runs.
            if session.provider != CUDA_PROVIDER:
                raise
            if device == "cuda":
                raise ProviderError(f"The GPU can't run the model: {error.__cause__}") from error
            _LOG.warning("The GPU can't run the model, the CPU does: %s", error.__cause__)
            return cls.open(path, manifest, device="cpu", gpu_index=gpu_index, threads=threads, max_batch=max_batch)
        return session

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Compute the model's outputs; see `Session.run`."""
        count = len(images)
        if self._padded:
            images = _pad(images, next(bucket for bucket in self._buckets if bucket >= count))
        try:
            arrays = self._session.run(self._outputs, {INPUT_NAME: images})
        except Exception as error:
            raise InferenceError("The model failed on this batch of pictures.") from error
        named = {name: array[:count] for name, array in zip(self._outputs, arrays, strict=True)}
        if named[LOGITS].shape != (count, self._labels):
            raise InferenceError(f"The model gave logits of shape {named[LOGITS].shape} for {count} pictures.")
        return Outputs(**named)

    def warm_up(self) -> None:
        """Run every bucket once, so that no request pays for a first time."""
        for bucket in self._buckets:
            self.run(np.zeros((bucket, self._size_px, self._size_px, 3), dtype=np.uint8))


def batch_buckets(max_batch: int) -> tuple[int, ...]:
    """Return the powers of two below `max_batch`, and `max_batch`."""
    powers = takewhile(lambda size: size < max_batch, (2**exponent for exponent in range(64)))
    return (*powers, max_batch)


def gpu_count() -> int:
    """Return how many NVIDIA GPUs the driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def choose_providers(
    device: Device, gpu_seen: bool, available: list[str], gpu_index: int
) -> list[str | tuple[str, dict[str, Any]]]:
    """Return ONNX Runtime's provider list, best first.

    Raises:
        ProviderError: CUDA is demanded, and there is no GPU or no CUDA build.
    """
    if device == "cuda" and not gpu_seen:
        raise ProviderError(f"CUDA was asked for, but the driver shows no GPU with index {gpu_index}.")
    if device == "cuda" and CUDA_PROVIDER not in available:
        raise ProviderError("CUDA was asked for, but this ONNX Runtime is built without it.")
    if device == "cpu" or not gpu_seen or CUDA_PROVIDER not in available:
        return [CPU_PROVIDER]
    cuda = {
        "device_id": str(gpu_index),
        # An exhaustive search takes minutes over all buckets for a few per cent.
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 keeps 10 bits of mantissa: the golden output would not be reproduced.
        "use_tf32": "0",
    }
    return [(CUDA_PROVIDER, cuda), CPU_PROVIDER]


def check_provider(device: Device, gpu_seen: bool, active: str) -> None:
    """Refuse, or say aloud, that the model runs where it was not meant to.

    ONNX Runtime falls back to the CPU with no more than a line on stderr when, say, cuDNN is missing.

    Raises:
        ProviderError: CUDA is demanded and something else is active.
    """
    if active == CUDA_PROVIDER or not gpu_seen:
        return
    if device == "cuda":
        raise ProviderError(f"CUDA was asked for, but {active} is active: are the CUDA and cuDNN libraries installed?")
    _LOG.warning("A GPU is there, but %s is active: are the CUDA and cuDNN libraries installed?", active)


def _create(path: Path, providers: list[str | tuple[str, dict[str, Any]]], threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads may spin between two operators, as is the default: measured on two cores, a lone picture is
    # answered sooner then, and the throughput under load is no worse.
    # ONNX Runtime prints what goes wrong with a provider; what matters of it is raised or logged here.
    with contextlib.redirect_stdout(io.StringIO()):
        if len(providers) > 1:
            ort.preload_dlls()  # finds the CUDA and cuDNN wheels; without them the system's are used
        try:
            session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:
            raise ModelIntegrityError(f"{path}: ONNX Runtime can't load it: {error}") from error
    # Otherwise a CUDA error at run time would quietly make this a CPU session.
    session.disable_fallback()
    return session


def _check_graph(session: ort.InferenceSession, manifest: Manifest) -> None:
    side = manifest.preprocessing.size_px
    inputs = [(node.name, node.type, _fixed(node.shape)) for node in session.get_inputs()]
    outputs = {node.name: (node.type, len(node.shape)) for node in session.get_outputs()}
    logits = [_fixed(node.shape) for node in session.get_outputs() if node.name == LOGITS]
    wanted_inputs = [(INPUT_NAME, "tensor(uint8)", [None, side, side, 3])]
    known = {name: ("tensor(float)", axes) for name, axes in _OUTPUT_AXES.items()}
    if inputs != wanted_inputs:
        raise ModelIntegrityError(f"The graph's input is {inputs}; the manifest wants {wanted_inputs}.")
    if logits != [[None, len(manifest.labels)]] or not outputs.items() <= known.items():
        raise ModelIntegrityError(
            f"The graph's outputs are {outputs}; wanted are {LOGITS} of shape (batch, {len(manifest.labels)}), and, "
            f"if at all, {FEATURES} and {EVIDENCE}, each with its type and number of axes as in {known}."
        )


def _fixed(shape: list[int | str | None]) -> list[int | None]:
    """Replace the names of dynamic dimensions by None."""
    return [side if isinstance(side, int) else None for side in shape]


def _pad(images: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    padding = np.zeros((count - len(images), *images.shape[1:]), dtype=np.uint8)
    return np.concatenate([images, padding])
