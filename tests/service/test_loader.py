"""From folder to proven session: tuning, fallback, variants, errands."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.core.errors import (
    GoldenMismatchError,
    InferenceError,
    ManifestError,
    ModelIntegrityError,
    ModelNotFoundError,
    ProviderError,
)
from app.core.parts import Preprocessing, ReviewBand, Variant
from app.core.spec import MANIFEST_FILE, MODEL_FILE, Manifest
from app.inference.loader import Errand, best_batch
from app.inference.outputs import Outputs
from app.inference.providers import CPU_PROVIDER, CUDA_PROVIDER, Placement
from app.inference.registry import ModelRef
from app.inference.session import OnnxSession
from app.inference.shares import SharingSession
from tests.models import NAME, SIZE_PX, VERSION, write_models
from tests.service.harness import load, loader_of, run_here

SPEC = Preprocessing(crop_px=None, size_px=16, resample="nearest", mean=(0.0,) * 3, std=(1.0,) * 3)


class Paced:
    """A session whose time per batch is given, and no more."""

    provider = CPU_PROVIDER
    max_batch = 8

    def __init__(self, clock: list[float], seconds: dict[int, float]) -> None:
        self.clock = clock
        self.seconds = seconds

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.clock[0] += self.seconds[len(images)]
        return Outputs(np.zeros((len(images), 2), np.float32))


@pytest.mark.parametrize(
    ("ms", "best"),
    [
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 8.0}, 4),
        ({1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}, 8),  # nothing lost: a batch costs the service less than single pictures
        ({1: 1.0, 2: 2.05, 4: 4.2, 8: 8.9}, 2),
        ({1: 1.0, 2: 2.2, 4: 4.2, 8: 8.9}, 1),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),
        ({1: 10.0, 2: 20.0, 4: 40.0, 8: 80.0}, 4),  # too long a wait
        ({1: 99.0, 2: 99.0, 4: 99.0, 8: 99.0}, 1),
    ],
)
def test_the_best_batch_is_measured(ms: dict[int, float], best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("app.inference.loader.time.perf_counter", lambda: clock[0])
    assert (
        best_batch(
            Paced(clock, {batch: run_ms / 1000 for batch, run_ms in ms.items()}),
            SPEC,
            lambda errand: run_here(0, errand),
        )
        == best
    )


def test_a_cpu_session_is_tuned_unless_told(models_dir: Path) -> None:
    assert load(models_dir, Placement(device="cpu")).session.max_batch in {1, 2, 4, 8}
    assert load(models_dir, Placement(device="cpu", max_batch=3)).session.max_batch == 3


def test_workers_of_one_device_share_a_session(models_dir: Path) -> None:
    placement = Placement(device="cpu", threads=2, callers=2)
    model = loader_of(models_dir, placement, placement).load(ModelRef(NAME, VERSION), run_here)
    assert len(model.sessions) == 2
    assert model.sessions[0] is model.sessions[1]
    assert model.session.max_batch in {1, 2, 4, 8}


@pytest.mark.parametrize("wrong", ["wide", "narrow"])
def test_each_part_of_a_sharing_session_is_proven(models_dir: Path, wrong: str) -> None:
    class Wrong(OnnxSession):
        def run(self, images: NDArray[np.uint8]) -> Outputs:
            return Outputs(super().run(images).logits + 1)

    def open_one_wrong(path: Path, manifest: Manifest, placement: Placement) -> SharingSession:
        parts = [
            (Wrong if part == wrong else OnnxSession).create(path, manifest, placement) for part in ("wide", "narrow")
        ]
        return SharingSession(parts[0], parts[1], 2, callers=2)

    loader = loader_of(models_dir, Placement(device="cpu", callers=2, threads=2), open_session=open_one_wrong)
    with pytest.raises(GoldenMismatchError):
        loader.load(ModelRef(NAME, VERSION), run_here)


def test_loading_gently_gives_the_same_model(models_dir: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    ref = ModelRef(NAME, VERSION)
    sessions = [loader_of(models_dir).load(ref, run_here, gently=gently).session for gently in (False, True)]
    plain, gentle = (session.run(images) for session in sessions)
    np.testing.assert_array_equal(plain.logits, gentle.logits)


def test_loading_gently_without_a_place_to_write(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    model = loader_of(models_dir).load(ModelRef(NAME, VERSION), run_here, gently=True)
    assert model.session.provider == CPU_PROVIDER
    assert "can't be optimised beforehand" in caplog.text


def test_what_runs_on_the_device_runs_as_errands(models_dir: Path) -> None:
    ran: list[int] = []

    def counted(worker: int, errand: Errand) -> None:
        ran.append(worker)
        errand()

    placements = [Placement(device="cpu", max_batch=2, gpu_index=index) for index in range(2)]
    model = loader_of(models_dir, *placements).load(ModelRef(NAME, VERSION), counted)
    assert len(model.sessions) == 2
    assert ran == [0, 0, 1, 1]  # one picture and the golden one on each


class BrokenGpuSession(OnnxSession):
    """Says that it runs on a GPU, and fails there."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        if self.provider == CUDA_PROVIDER:
            raise InferenceError("no") from RuntimeError("cuDNN is missing")
        return super().run(images)


def broken_gpu(path: Path, manifest: Manifest, placement: Placement) -> OnnxSession:
    session = BrokenGpuSession.create(path, manifest, dataclasses.replace(placement, device="cpu"))
    session.provider = CPU_PROVIDER if placement.device == "cpu" else CUDA_PROVIDER
    return session


def test_a_gpu_that_fails_the_first_batch(models_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(models_dir, Placement(device="auto", max_batch=1), open_session=broken_gpu)
    assert model.session.provider == CPU_PROVIDER
    assert "cuDNN is missing" in caplog.text
    with pytest.raises(ProviderError, match="cuDNN is missing"):
        load(models_dir, Placement(device="cuda", max_batch=1), open_session=broken_gpu)


@pytest.mark.parametrize("ref", [("nothing", "1.0.0"), (NAME, "9.9.9")])
def test_a_model_that_is_not_installed(models_dir: Path, ref: tuple[str, str]) -> None:
    with pytest.raises(ModelNotFoundError, match="not installed"):
        load(models_dir, ref=ModelRef(*ref))


@pytest.mark.parametrize("name", ["..", "../tiny", "", ".", "a/b", "tiny\n"])
def test_a_name_that_is_no_folder(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        ModelRef(name, VERSION)


def with_variant(root: Path, atol: float = 1e-4) -> Path:
    """Add the variant int8 to the tiny model: the graph of another seed, so that it can be told apart."""
    write_models(root)
    write_models(root, version="2.0.0", seed=5, active=False)
    folder, other = root / NAME / VERSION, root / NAME / "2.0.0"
    shutil.copy(other / MODEL_FILE, folder / "model.int8.onnx")
    digest = hashlib.sha256((folder / "model.int8.onnx").read_bytes()).hexdigest()
    manifest = Manifest.load(folder)
    variant = Variant(
        file="model.int8.onnx", logits=Manifest.load(other).golden.logits, atol=atol, figures={"weighted_f1": 0.8}
    )
    changed = dataclasses.replace(manifest, files=manifest.files | {variant.file: digest}, variants={"int8": variant})
    (folder / MANIFEST_FILE).write_text(changed.to_json(), encoding="utf-8")
    return root


def test_a_variant_is_another_graph_with_its_own_golden_output(tmp_path: Path) -> None:
    with_variant(tmp_path)
    assert load(tmp_path).precision == "fp32"
    assert load(tmp_path, Placement(device="cpu", precision="int8")).precision == "int8"
    with pytest.raises(ModelIntegrityError, match=r"no variant fp16; it has \['int8'\]"):
        load(tmp_path, Placement(device="cpu", precision="fp16"))


def test_a_variant_answers_with_its_own_temperature_band_and_threshold(tmp_path: Path) -> None:
    with_variant(tmp_path)
    folder = tmp_path / NAME / VERSION
    manifest = Manifest.load(folder)
    own = dataclasses.replace(manifest.variants["int8"], temperature=3.5, review=ReviewBand(low=0.1, high=0.2))
    changed = dataclasses.replace(manifest, variants={"int8": own})
    (folder / MANIFEST_FILE).write_text(changed.to_json(), encoding="utf-8")
    served = load(tmp_path, Placement(device="cpu", precision="int8")).manifest
    assert (served.temperature, served.review) == (3.5, ReviewBand(low=0.1, high=0.2))
    assert served.novelty == manifest.novelty  # it has none of its own
    plain = load(tmp_path).manifest
    assert (plain.temperature, plain.review) == (manifest.temperature, manifest.review)


@pytest.mark.parametrize("temperature", [0, -1, "warm", float("inf")])
def test_a_variants_temperature_is_checked(tmp_path: Path, temperature: object) -> None:
    with_variant(tmp_path)
    file = tmp_path / NAME / VERSION / MANIFEST_FILE
    raw = json.loads(file.read_text())
    raw["variants"]["int8"]["temperature"] = temperature
    file.write_text(json.dumps(raw))
    with pytest.raises(ManifestError, match="temperature"):
        Manifest.load(file.parent)


def test_a_variant_that_does_not_reproduce_its_golden_output(tmp_path: Path) -> None:
    with_variant(tmp_path)
    shutil.copy(tmp_path / NAME / VERSION / MODEL_FILE, tmp_path / NAME / VERSION / "model.int8.onnx")
    folder = tmp_path / NAME / VERSION
    manifest = Manifest.load(folder)
    files = manifest.files | {"model.int8.onnx": manifest.files[MODEL_FILE]}
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(manifest, files=files).to_json(), encoding="utf-8")
    with pytest.raises(GoldenMismatchError):
        load(tmp_path, Placement(device="cpu", precision="int8"))


def test_a_self_test_tells_a_device_that_is_not_well(models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(models_dir)
    model = loader.load(ModelRef(NAME, VERSION), run_here)
    (test,) = loader.self_tests(model)
    test()
    monkeypatch.setattr(model.session, "run", lambda _: Outputs(np.zeros((1, 2), np.float32)))
    with pytest.raises(GoldenMismatchError):
        test()
