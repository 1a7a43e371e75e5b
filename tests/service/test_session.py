"""ONNX Runtime sessions: the graph's contract, the choice of provider and its read-back."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from app.core.errors import InferenceError, ModelIntegrityError, ProviderError
from app.core.spec import MODEL_FILE, Manifest
from app.inference import session as module
from app.inference.session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    OnnxSession,
    batch_buckets,
    check_provider,
    choose_providers,
    gpu_count,
)
from app.settings import Device
from tests.models import NAME, SIZE_PX, VERSION, build_graph


def open_session(models_dir: Path, *, device: Device = "cpu", max_batch: int = 0) -> OnnxSession:
    folder = models_dir / NAME / VERSION
    manifest = Manifest.load(folder)
    return OnnxSession.open(folder / MODEL_FILE, manifest, device=device, gpu_index=0, threads=1, max_batch=max_batch)


def images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, size=(count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def test_logits_do_not_depend_on_the_batch(models_dir: Path) -> None:
    session = open_session(models_dir)
    assert (session.provider, session.max_batch) == (CPU_PROVIDER, 4)
    batch = images(4)
    logits = session.run(batch).logits
    assert logits.shape == (4, 2)
    assert logits.dtype == np.float32
    singly = np.concatenate([session.run(batch[i : i + 1]).logits for i in range(4)])
    np.testing.assert_allclose(singly, logits, rtol=0, atol=1e-6)


def test_features_and_evidence_belong_to_the_logits(models_dir: Path) -> None:
    outputs = open_session(models_dir).run(images(3))
    assert outputs.features is not None
    assert outputs.evidence is not None
    assert outputs.features.shape == (3, 4)
    # The tiny model's head is linear: the mean of its evidence is the margin of ALL over HEM.
    margin = outputs.logits[:, 0] - outputs.logits[:, 1]
    np.testing.assert_allclose(outputs.evidence.mean(axis=(1, 2)), margin, rtol=1e-4, atol=1e-4)
    row = outputs.row(1)
    assert row.evidence is not None
    np.testing.assert_array_equal(row.evidence, outputs.evidence[1])


def test_padding_is_cut_off_again(models_dir: Path) -> None:
    session = open_session(models_dir, max_batch=6)
    whole = session.run(images(5)).logits
    session._padded = True
    np.testing.assert_allclose(session.run(images(5)).logits, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("max_batch", "buckets"), [(1, (1,)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)), (32, (1, 2, 4, 8, 16, 32))]
)
def test_batch_buckets(max_batch: int, buckets: tuple[int, ...]) -> None:
    assert batch_buckets(max_batch) == buckets


@pytest.mark.parametrize(
    "graph",
    [build_graph(size_px=32), build_graph(labels=3), build_graph(output="scores")],
    ids=["size", "labels", "name"],
)
def test_a_graph_that_does_not_fit_the_manifest(models_dir: Path, tmp_path: Path, graph: ModelProto) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    manifest = Manifest.load(models_dir / NAME / VERSION)
    with pytest.raises(ModelIntegrityError, match="want"):
        OnnxSession.open(path, manifest, device="cpu", gpu_index=0, threads=1, max_batch=1)


def test_a_file_that_is_no_graph(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ModelIntegrityError, match="can't load"):
        OnnxSession.open(
            path, Manifest.load(models_dir / NAME / VERSION), device="cpu", gpu_index=0, threads=1, max_batch=1
        )


def test_a_failing_run_is_an_inference_error(models_dir: Path) -> None:
    session = open_session(models_dir)
    with pytest.raises(InferenceError):
        session.run(np.zeros((1, 3, 3, 3), dtype=np.uint8))


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
    providers = choose_providers(device, gpu_seen, available, 2)
    name, options = providers[0] if isinstance(providers[0], tuple) else (providers[0], {})
    assert name == first
    assert providers[-1] == CPU_PROVIDER
    if first == CUDA_PROVIDER:
        assert options == {"device_id": "2", "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


@pytest.mark.parametrize(("gpu_seen", "available"), [(False, [CUDA_PROVIDER]), (True, [CPU_PROVIDER])])
def test_cuda_that_is_demanded_must_be_there(gpu_seen: bool, available: list[str]) -> None:
    with pytest.raises(ProviderError, match="CUDA"):
        choose_providers("cuda", gpu_seen, available, 0)


def test_a_fall_to_the_cpu_is_an_error_or_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ProviderError, match="CPUExecutionProvider is active"):
        check_provider("cuda", True, CPU_PROVIDER)
    with caplog.at_level(logging.WARNING):
        check_provider("auto", False, CPU_PROVIDER)
        assert not caplog.records
        check_provider("auto", True, CPU_PROVIDER)
    assert "CPUExecutionProvider is active" in caplog.text


@pytest.mark.skipif(gpu_count() > 0, reason="a GPU is there")
def test_cuda_without_a_gpu(models_dir: Path) -> None:
    with pytest.raises(ProviderError):
        open_session(models_dir, device="cuda")


@pytest.mark.skipif(gpu_count() == 0 or CUDA_PROVIDER not in ort.get_available_providers(), reason="no GPU")
def test_cuda_runs_where_a_gpu_is(models_dir: Path) -> None:
    session = open_session(models_dir, device="cuda")
    assert (session.provider, session.max_batch) == (CUDA_PROVIDER, 32)
    np.testing.assert_allclose(
        session.run(images(3)).logits, open_session(models_dir).run(images(3)).logits, rtol=0, atol=1e-4
    )


class BrokenGpuSession(OnnxSession):
    """Says that it runs on a GPU, and fails there."""

    def __init__(self, session: ort.InferenceSession, manifest: Manifest, max_batch: int) -> None:
        super().__init__(session, manifest, max_batch)
        self.broken = module.gpu_count() > 0
        self.provider = CUDA_PROVIDER if self.broken else CPU_PROVIDER

    def warm_up(self) -> None:
        if self.broken:
            raise InferenceError("no") from RuntimeError("cuDNN is missing")
        super().warm_up()


def test_a_gpu_that_fails_the_first_batch(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = iter([1, 1, 0, 1, 1])
    monkeypatch.setattr(module, "gpu_count", lambda: next(seen))
    monkeypatch.setattr(module, "choose_providers", lambda *_: [CPU_PROVIDER])
    monkeypatch.setattr(module, "check_provider", lambda *_: None)
    folder = models_dir / NAME / VERSION
    manifest = Manifest.load(folder)
    session = BrokenGpuSession.open(folder / MODEL_FILE, manifest, device="auto", gpu_index=0, threads=1, max_batch=1)
    assert session.provider == CPU_PROVIDER
    assert "cuDNN is missing" in caplog.text
    with pytest.raises(ProviderError, match="cuDNN is missing"):
        BrokenGpuSession.open(folder / MODEL_FILE, manifest, device="cuda", gpu_index=0, threads=1, max_batch=1)
