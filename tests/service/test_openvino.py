"""OpenVINO behind the same protocol: the same numbers, the same errors; bfloat16 where the processor has it."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.core.errors import InferenceError, ModelIntegrityError, ProviderError
from app.core.spec import MODEL_FILE, Manifest
from app.cpus import saturates_8_bits
from app.inference.opening import open_session
from app.inference.openvino import OpenVinoSession
from app.inference.providers import CPU_PROVIDER, OPENVINO_PROVIDER, Placement
from app.inference.session import OnnxSession
from tests.models import NAME, SIZE_PX, VERSION, build_graph
from tests.service.harness import ROOT, assert_alike, load

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra openvino is missing"
)


def place(threads: int = 1, precision: str = "model", max_batch: int = 0) -> Placement:
    values = {"device": "cpu", "cpu_engine": "openvino", "threads": threads, "max_batch": max_batch}
    return Placement(**values | {"precision": precision})  # type: ignore[arg-type]  # their types are mixed


def images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, size=(count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


@pytest.fixture
def folder(models_dir: Path) -> Path:
    return models_dir / NAME / VERSION


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_numbers_for_any_batch(folder: Path, threads: int) -> None:
    manifest = Manifest.load(folder)
    session = open_session(folder / MODEL_FILE, manifest, place(threads))
    reference = OnnxSession.create(folder / MODEL_FILE, manifest, Placement(device="cpu"))
    assert session.provider == OPENVINO_PROVIDER
    for count in range(1, 10):
        assert_alike(session.run(images(count)), reference.run(images(count)))


@needs_openvino
def test_many_threads_at_once(folder: Path) -> None:
    session = OpenVinoSession.create(folder / MODEL_FILE, Manifest.load(folder), place(2), streams=2)
    batches = [images(count) for count in (1, 2, 3, 4, 5, 8)] * 4
    expected = [session.run(batch).logits for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for answered, alone in zip(pool.map(session.run, batches), expected, strict=True):
            np.testing.assert_allclose(answered.logits, alone, rtol=0, atol=1e-5)


@needs_openvino
def test_an_answer_outlives_the_next_run(folder: Path) -> None:
    session = OpenVinoSession.create(folder / MODEL_FILE, Manifest.load(folder), place(), streams=1)
    first = session.run(images(1))
    before = first.logits.copy()
    session.run(255 - images(1))
    np.testing.assert_array_equal(first.logits, before)


@needs_openvino
def test_a_failure_is_the_batch_s_own(folder: Path) -> None:
    session = OpenVinoSession.create(folder / MODEL_FILE, Manifest.load(folder), place(), streams=1)
    with pytest.raises(InferenceError):
        session.run(np.zeros((1, 3, 3, 3), dtype=np.uint8))
    assert session.run(images(1)).logits.shape == (1, 2)


@needs_openvino
@pytest.mark.parametrize("graph", [b"nonsense", build_graph(output="scores").SerializeToString()])
def test_a_graph_that_is_not_the_manifest_s(folder: Path, tmp_path: Path, graph: bytes) -> None:
    path = tmp_path / MODEL_FILE
    path.write_bytes(graph)
    with pytest.raises(ModelIntegrityError):
        OpenVinoSession.create(path, Manifest.load(folder), place(), streams=1)


@needs_openvino
def test_bfloat16_says_so(models_dir: Path) -> None:
    try:
        model = load(models_dir, place(2, "bf16"))
    except ProviderError as error:
        pytest.skip(str(error))
    assert (model.precision, model.session.provider) == ("bf16", OPENVINO_PROVIDER)
    full = load(models_dir, place(2))
    assert (full.precision, full.session.provider) == ("fp32", OPENVINO_PROVIDER)
    np.testing.assert_allclose(
        model.session.run(images(5)).logits, full.session.run(images(5)).logits, rtol=0.05, atol=0.5
    )


@needs_openvino
def test_its_package_tells_nobody(folder: Path) -> None:
    program = """
import socket, sys
from pathlib import Path
from app.core.spec import Manifest
from app.inference.openvino import OpenVinoSession
from app.inference.providers import Placement

def refuse(*arguments):
    print("connects", arguments)

sys.addaudithook(lambda event, arguments: event.startswith(("socket.", "urllib")) and refuse(event, arguments))
folder = Path(sys.argv[1])
OpenVinoSession.create(folder / "model.onnx", Manifest.load(folder), Placement(device="cpu"), streams=1)
assert "openvino" in sys.modules
print([name for name, module in sys.modules.items() if "openvino_telemetry" in name and module is not None])
"""
    told = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert told.stdout == "[]\n"


def test_onnx_runtime_makes_no_bfloat16(models_dir: Path) -> None:
    with pytest.raises(ModelIntegrityError, match=f"no variant bf16.*{CPU_PROVIDER} does not make one"):
        load(models_dir, Placement(device="cpu", precision="bf16"))


def test_without_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ProviderError, match=r"leukoscope\[openvino\]"):
        open_session(folder / MODEL_FILE, Manifest.load(folder), place())


def cpuinfo(folder: Path, *flags: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: fpu sse avx2 {' '.join(flags)}\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni", "amx_int8"])
def test_processors_with_wide_sums_are_known(flag: str, tmp_path: Path) -> None:
    assert not saturates_8_bits(cpuinfo(tmp_path, flag))
    assert saturates_8_bits(cpuinfo(tmp_path, "avx512f"))


def test_other_processors_are_not_judged(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    assert not saturates_8_bits(file)
    file.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n", encoding="utf-8")
    assert not saturates_8_bits(file)


@needs_openvino
def test_8_bits_are_refused_where_they_would_be_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.inference.openvino.saturates_8_bits", lambda: True)
    with pytest.raises(ProviderError, match="no VNNI or AMX"):
        open_session(folder / MODEL_FILE, Manifest.load(folder), place(precision="int8"))
    assert open_session(folder / MODEL_FILE, Manifest.load(folder), place()).provider == OPENVINO_PROVIDER
