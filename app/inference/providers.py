"""Choose ONNX Runtime's execution provider, and read back which one really runs."""

import ctypes
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from app.core.errors import ProviderError
from app.settings import CpuEngine, CudaEngine, Device, Precision

CPU_PROVIDER: Final = "CPUExecutionProvider"
OPENVINO_PROVIDER: Final = "OpenVINO"
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
TENSORRT_PROVIDER: Final = "TensorrtExecutionProvider"
GPU_PROVIDERS: Final = frozenset({CUDA_PROVIDER, TENSORRT_PROVIDER})

_LOG: Final = logging.getLogger(__name__)

ProviderList = list[str | tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where and how one session runs.

    Attributes:
        device: ``auto`` takes a GPU where there is one, and says so if it can't.
        gpu_index: Which GPU.
        threads: CPU threads, 1 or more.
        callers: How many workers run the session at the same time, sharing the threads.
        max_batch: Largest batch; 0 chooses by device, on the CPU by measuring.
        engine: What runs the graph on a GPU.
        cpu_engine: What runs it on a CPU.
        precision: Which of the model's variants runs; ``model`` is the one that was published first.
        cache_dir: Where TensorRT keeps the engines that it has built.
        optimised: Whether the graph is already as ONNX Runtime would make it for this CPU.
    """

    device: Device = "auto"
    gpu_index: int = 0
    threads: int = 1
    callers: int = 1
    max_batch: int = 0
    engine: CudaEngine = "cuda"
    cpu_engine: CpuEngine = "onnxruntime"
    precision: Precision = "model"
    cache_dir: Path | None = None
    optimised: bool = False


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
    placement: Placement, gpu_seen: bool, available: list[str], shape_of: dict[str, str] | None = None
) -> ProviderList:
    """Return ONNX Runtime's provider list, best first.

    Args:
        placement: What was asked for.
        gpu_seen: Whether the driver shows this GPU.
        available: The providers that this ONNX Runtime is built with.
        shape_of: For TensorRT, the smallest, usual and largest input as ``name:1x2x3`` under ``min``,
            ``opt`` and ``max``, so that one engine serves every batch.

    Raises:
        ProviderError: A GPU engine is demanded, and there is no GPU or no such build.
    """
    wanted = TENSORRT_PROVIDER if placement.engine == "tensorrt" else CUDA_PROVIDER
    if placement.device == "cuda" and not gpu_seen:
        raise ProviderError(f"CUDA was asked for, but the driver shows no GPU with index {placement.gpu_index}.")
    if placement.device == "cuda" and wanted not in available:
        raise ProviderError(f"{wanted} was asked for, but this ONNX Runtime is built without it.")
    if placement.device == "cpu" or not gpu_seen or CUDA_PROVIDER not in available:
        return [CPU_PROVIDER]
    providers: ProviderList = [(CUDA_PROVIDER, _cuda_options(placement)), CPU_PROVIDER]
    if placement.engine == "tensorrt" and wanted in available:
        providers.insert(0, (TENSORRT_PROVIDER, _tensorrt_options(placement, shape_of or {})))
    return providers


def check_provider(placement: Placement, gpu_seen: bool, active: str) -> None:
    """Refuse, or say aloud, that the model runs where it was not meant to.

    ONNX Runtime falls back to the CPU with no more than a line on stderr when, say, cuDNN is missing.

    Raises:
        ProviderError: A GPU engine is demanded and something else is active.
    """
    wanted = TENSORRT_PROVIDER if placement.engine == "tensorrt" else CUDA_PROVIDER
    if active == wanted or not gpu_seen or placement.device == "cpu":
        return
    missing = f"{wanted} was asked for, but {active} is active: are its libraries installed?"
    if placement.device == "cuda":
        raise ProviderError(missing)
    _LOG.warning("A GPU is there, but %s", missing)


def _cuda_options(placement: Placement) -> dict[str, str]:
    return {
        "device_id": str(placement.gpu_index),
        # An exhaustive search takes minutes over all buckets for a few per cent.
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 keeps 10 bits of mantissa: the golden output would not be reproduced.
        "use_tf32": "0",
        "enable_cuda_graph": "1" if placement.engine == "cuda-graph" else "0",
    }


def _tensorrt_options(placement: Placement, shape_of: dict[str, str]) -> dict[str, str]:
    options = {
        "device_id": str(placement.gpu_index),
        "trt_fp16_enable": "1" if placement.precision == "fp16" else "0",
        # Building an engine takes minutes; with a cache, once per model and machine.
        "trt_engine_cache_enable": "0" if placement.cache_dir is None else "1",
        "trt_timing_cache_enable": "0" if placement.cache_dir is None else "1",
    }
    if placement.cache_dir is not None:
        options["trt_engine_cache_path"] = str(placement.cache_dir)
        options["trt_timing_cache_path"] = str(placement.cache_dir)
    return options | {f"trt_profile_{which}_shapes": shape for which, shape in shape_of.items()}
