"""Which execution provider is asked for, and what is said when another one runs."""

import logging
from pathlib import Path

import pytest

from app.core.errors import ProviderError
from app.inference.providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Placement,
    check_provider,
    choose_providers,
    gpu_count,
)
from app.settings import Device
from tests.service.harness import load

ALL_BUILT = [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER]


@pytest.mark.parametrize(
    ("device", "gpu_seen", "available", "first"),
    [
        ("auto", True, [CUDA_PROVIDER, CPU_PROVIDER], CUDA_PROVIDER),
        ("auto", False, [CUDA_PROVIDER, CPU_PROVIDER], CPU_PROVIDER),
        ("auto", True, [CPU_PROVIDER], CPU_PROVIDER),
        ("cuda", True, [CUDA_PROVIDER, CPU_PROVIDER], CUDA_PROVIDER),
        ("cpu", True, [CUDA_PROVIDER, CPU_PROVIDER], CPU_PROVIDER),
    ],
)
def test_provider_choice(device: Device, gpu_seen: bool, available: list[str], first: str) -> None:
    providers = choose_providers(Placement(device=device, gpu_index=2), gpu_seen, available)
    name, options = providers[0] if isinstance(providers[0], tuple) else (providers[0], {})
    assert name == first
    assert providers[-1] == CPU_PROVIDER
    if first == CUDA_PROVIDER:
        assert options == {
            "device_id": "2",
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
            "enable_cuda_graph": "0",
        }


def test_cuda_graphs_are_switched_on() -> None:
    providers = choose_providers(Placement(device="cuda", engine="cuda-graph"), True, ALL_BUILT)
    assert isinstance(providers[0], tuple)
    assert providers[0][1]["enable_cuda_graph"] == "1"


def test_tensorrt_keeps_its_engines_and_one_serves_every_batch(tmp_path: Path) -> None:
    placement = Placement(device="cuda", gpu_index=1, engine="tensorrt", precision="fp16", cache_dir=tmp_path)
    shapes = {"min": "image:1x8x8x3", "opt": "image:4x8x8x3", "max": "image:8x8x8x3"}
    first, second, third = choose_providers(placement, True, ALL_BUILT, shapes)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert (first[0], second[0], third) == (TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER)
    assert first[1]["device_id"] == "1"
    assert first[1]["trt_fp16_enable"] == "1"
    assert (first[1]["trt_engine_cache_enable"], first[1]["trt_engine_cache_path"]) == ("1", str(tmp_path))
    assert first[1]["trt_profile_max_shapes"] == "image:8x8x8x3"


@pytest.mark.parametrize("engine", ["cuda", "tensorrt"])
@pytest.mark.parametrize(("gpu_seen", "available"), [(False, ALL_BUILT), (True, [CPU_PROVIDER])])
def test_a_gpu_that_is_demanded_must_be_there(engine: str, gpu_seen: bool, available: list[str]) -> None:
    placement = Placement(device="cuda", engine="tensorrt" if engine == "tensorrt" else "cuda")
    with pytest.raises(ProviderError, match="was asked for"):
        choose_providers(placement, gpu_seen, available)


def test_a_fall_to_the_cpu_is_an_error_or_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ProviderError, match="CPUExecutionProvider is active"):
        check_provider(Placement(device="cuda"), True, CPU_PROVIDER)
    with pytest.raises(ProviderError, match="CUDAExecutionProvider is active"):
        check_provider(Placement(device="cuda", engine="tensorrt"), True, CUDA_PROVIDER)
    with caplog.at_level(logging.WARNING):
        check_provider(Placement(), False, CPU_PROVIDER)
        check_provider(Placement(device="cpu"), True, CPU_PROVIDER)
        assert not caplog.records
        check_provider(Placement(), True, CPU_PROVIDER)
    assert "CPUExecutionProvider is active" in caplog.text


@pytest.mark.skipif(gpu_count() > 0, reason="a GPU is there")
def test_cuda_without_a_gpu(models_dir: Path) -> None:
    with pytest.raises(ProviderError):
        load(models_dir, Placement(device="cuda"))
