"""ONNX Runtime sessions: the graph's contract, batches, bound buffers, and what a failure is called."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from app.core.errors import DeviceMemoryError, InferenceError, ModelIntegrityError
from app.core.spec import INPUT_NAME, MODEL_FILE, Manifest
from app.inference.binding import BoundRunner
from app.inference.providers import CPU_PROVIDER, CUDA_PROVIDER, Placement, gpu_count
from app.inference.session import OnnxSession, batch_buckets, is_out_of_memory
from tests.models import NAME, SIZE_PX, VERSION, build_graph


def open_session(models_dir: Path, placement: Placement | None = None) -> OnnxSession:
    folder = models_dir / NAME / VERSION
    return OnnxSession.create(folder / MODEL_FILE, Manifest.load(folder), placement or Placement(device="cpu"))


def images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, size=(count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


def test_logits_do_not_depend_on_the_batch(models_dir: Path) -> None:
    session = open_session(models_dir)
    assert (session.provider, session.max_batch) == (CPU_PROVIDER, 8)
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


def test_bound_buffers_give_the_same_numbers(models_dir: Path) -> None:
    raw = ort.InferenceSession(models_dir / NAME / VERSION / MODEL_FILE, providers=[CPU_PROVIDER])
    bound = BoundRunner(raw, INPUT_NAME, (SIZE_PX, SIZE_PX, 3), (1, 4), device=("cpu", 0))
    for count in (1, 3, 4, 2, 1):  # 2 and 3 are padded, and a buffer is used again
        batch = images(count)
        plain = raw.run(None, {INPUT_NAME: batch})
        for ours, theirs in zip(bound.run(batch), plain, strict=True):
            np.testing.assert_allclose(ours[:count], theirs, rtol=0, atol=1e-6)
            assert len(ours) == (1 if count == 1 else 4)


def test_a_bound_answer_outlives_the_next_run(models_dir: Path) -> None:
    raw = ort.InferenceSession(models_dir / NAME / VERSION / MODEL_FILE, providers=[CPU_PROVIDER])
    bound = BoundRunner(raw, INPUT_NAME, (SIZE_PX, SIZE_PX, 3), (1,), device=("cpu", 0))
    first = bound.run(images(1))[0]
    kept = first.copy()
    bound.run(np.zeros((1, SIZE_PX, SIZE_PX, 3), dtype=np.uint8))
    np.testing.assert_array_equal(first, kept)


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
        OnnxSession.create(path, manifest, Placement(device="cpu"))


def test_a_file_that_is_no_graph(models_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(ModelIntegrityError, match="can't load"):
        OnnxSession.create(path, Manifest.load(models_dir / NAME / VERSION), Placement(device="cpu"))


def test_a_failing_run_is_an_inference_error(models_dir: Path) -> None:
    session = open_session(models_dir)
    with pytest.raises(InferenceError):
        session.run(np.zeros((1, 3, 3, 3), dtype=np.uint8))


class Raising:
    """Stands in ONNX Runtime's place and raises."""

    def __init__(self, session: ort.InferenceSession, error: Exception) -> None:
        self.get_outputs = session.get_outputs
        self.get_providers = session.get_providers
        self.error = error

    def run(self, *_: object) -> None:
        raise self.error


def test_a_full_device_has_its_own_error(models_dir: Path) -> None:
    session = open_session(models_dir)
    full = RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9")
    session._session = Raising(session._session, full)
    with pytest.raises(DeviceMemoryError):
        session.run(images(1))


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA failure 700: an illegal memory access was encountered"), False),
        (ValueError("invalid dimensions"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


@pytest.mark.skipif(gpu_count() == 0 or CUDA_PROVIDER not in ort.get_available_providers(), reason="no GPU")
@pytest.mark.parametrize("engine", ["cuda", "cuda-graph"])
def test_cuda_runs_where_a_gpu_is(models_dir: Path, engine: str) -> None:
    placement = Placement(device="cuda", engine="cuda-graph" if engine == "cuda-graph" else "cuda")
    session = open_session(models_dir, placement)
    assert (session.provider, session.max_batch) == (CUDA_PROVIDER, 32)
    expected = open_session(models_dir).run(images(3)).logits
    for _ in range(3):
        np.testing.assert_allclose(session.run(images(3)).logits, expected, rtol=0, atol=1e-4)
