"""A model that looks at the cell alone: training, graph and service see the same window of a picture."""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from app.core.errors import InferenceError, ModelIntegrityError
from app.core.spec import MODEL_FILE, Manifest
from app.core.windows import find_window
from app.inference.binding import BoundRunner
from app.inference.opening import open_session
from app.inference.providers import Placement
from app.inference.session import OnnxSession
from tests.training.conftest import INPUT, SPLIT
from training.cli import app
from training.config import FeatureRunConfig, ProbeRunConfig, RunConfig
from training.errors import ConfigError, RunError
from training.evaluate import evaluate
from training.export import export, lineage
from training.graph import round_to_half
from training.parity import onnx_outputs
from training.probe import probe
from training.run import Run, network_of
from training.tables import InputConfig
from training.unpack import unpack
from training.variants import add_variant
from training.zoo import create

SIZE = 96
WINDOWED = INPUT | {"size_px": SIZE, "windows": {"sides_px": [48, 64], "step_px": 16}}


def config(start: Path, **model: object) -> ProbeRunConfig:
    tables = {
        "name": "tiny-windows",
        "seed": 7,
        "model": {
            "network": "efficientnet-b3-stages",
            "freeze": True,
            "start": {"kind": "file", "file": str(start)},
        }
        | model,
        "split": SPLIT | {"kind": "fold"},
        "input": WINDOWED,
        "augment": {"flip": 0},
        "probe": {"strengths": [1e-2]},
    }
    return ProbeRunConfig.model_validate(tables)


def start_in(folder: Path) -> Path:
    torch.manual_seed(3)
    file = folder / "start.safetensors"
    save_file(create("efficientnet-b3", 64).backbone.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def run(drawn_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("windows")
    made = Run(folder / "run")
    probe(config(start_in(folder)), drawn_index, made.folder)
    evaluate(made, pictures=2)
    return made


@pytest.fixture(scope="module")
def model(run: Run) -> Path:
    return export(run, run.folder / "models", "1.0.0")


@pytest.fixture
def images(run: Run) -> NDArray[np.uint8]:
    """Cells in windows of each size, and a picture without any black."""
    data = run.load_data()
    cells = np.array(data.inputs[:5])
    cells[0, :32] = cells[0, 64:] = cells[0, :, :32] = cells[0, :, 64:] = 0
    cells[1, :, :16] = cells[1, :, 80:] = cells[1, :16] = cells[1, 80:] = 0
    cells[2] = np.maximum(cells[2], 50)
    spec = run.config().input.spec()
    assert spec.windows is not None
    assert {find_window(cell, spec.windows).side for cell in cells} >= {48, 64, 96}
    return cells


def test_the_manifest_has_the_windows_and_the_graph_any_side(model: Path) -> None:
    windows = Manifest.load(model).preprocessing.windows
    assert windows is not None
    assert (windows.sides_px, windows.step_px) == ((48, 64), 16)
    assert json.loads((model / "manifest.json").read_text())["preprocessing"]["windows"]["sides_px"] == [48, 64]
    (given,) = ort.InferenceSession(model / MODEL_FILE, providers=["CPUExecutionProvider"]).get_inputs()
    assert not any(isinstance(side, int) for side in given.shape[:3])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("threads", [1, 2])
def test_service_and_training_see_the_same(
    model: Path, run: Run, images: NDArray[np.uint8], engine: str, threads: int
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    manifest = Manifest.load(model)
    session = open_session(
        model / MODEL_FILE,
        manifest,
        Placement(device="cpu", cpu_engine=engine, threads=threads),  # type: ignore[arg-type]  # one of the two
    )
    expected = onnx_outputs(model / MODEL_FILE, images, manifest.preprocessing)
    together = session.run(images)
    for name, values in expected._asdict().items():
        said = getattr(together, name)
        scale = np.abs(values).max()
        np.testing.assert_allclose(said, values, rtol=0, atol=1e-4 * scale, err_msg=name)
        alone = np.concatenate([getattr(session.run(image[None]), name) for image in images])
        np.testing.assert_allclose(said, alone, rtol=0, atol=1e-4 * scale, err_msg=name)
    # The network itself, on what its window shows of the first picture and nothing else.
    window = find_window(images[0], manifest.preprocessing.windows)  # type: ignore[arg-type]  # it has some
    seen = images[:1, window.top :, window.left :][:, : window.side, : window.side]
    network = round_to_half(run.load_network())
    with torch.inference_mode():
        logits = network((torch.from_numpy(np.array(seen)).permute(0, 3, 1, 2).float() - 127) / 128).numpy()
    np.testing.assert_allclose(together.logits[:1], logits, rtol=1e-3, atol=1e-3)
    assert together.evidence is not None
    places = np.flatnonzero(np.abs(together.evidence[0]).sum(axis=1))
    assert window.top // 16 <= places.min() <= places.max() < (window.top + window.side) // 16


def test_bound_buffers_have_each_side(model: Path, images: NDArray[np.uint8]) -> None:
    raw = ort.InferenceSession(model / MODEL_FILE, providers=["CPUExecutionProvider"])
    spec = Manifest.load(model).preprocessing
    bound = {
        side: BoundRunner(raw, "image", (side, side, 3), (1, 2, 4, 8), device=("cpu", 0)) for side in spec.sides_px
    }
    session = OnnxSession(raw, Manifest.load(model), Placement(device="cpu"))
    plain = session.run(images).logits
    session._bound = bound
    np.testing.assert_allclose(session.run(images).logits, plain, rtol=1e-4, atol=1e-4)


def test_a_graph_of_one_side_is_no_model_with_windows(models_dir: Path, model: Path) -> None:
    fixed = next(models_dir.glob(f"*/*/{MODEL_FILE}"))
    with pytest.raises(ModelIntegrityError, match="input"):
        open_session(fixed, Manifest.load(model), Placement(device="cpu"))


def test_a_picture_of_another_size_fails_alone(model: Path, images: NDArray[np.uint8]) -> None:
    session = open_session(model / MODEL_FILE, Manifest.load(model), Placement(device="cpu"))
    with pytest.raises(InferenceError):
        session.run(np.full((1, 50, 50, 3), 99, dtype=np.uint8))
    assert np.isfinite(session.run(images).logits).all()


def test_windows_are_for_a_probe(tmp_path: Path) -> None:
    fit = {"name": "tiny", "seed": 0, "model": {"network": "efficientnet-b0"}, "split": SPLIT, "input": WINDOWED}
    with pytest.raises(ValueError, match="windows is for a probe"):
        RunConfig.model_validate(fit | {"optimiser": {"backbone_lr": 1e-4, "head_lr": 1e-3}, "fit": {"epochs": 1}})
    grown = {"network": "efficientnet-b0", "start": {"kind": "grown", "relative": "tf_efficientnet_lite0"}}
    with pytest.raises(ValueError, match="windows is for a probe"):
        FeatureRunConfig.model_validate(fit | {"model": grown, "distil": {"steps": 1, "crop_px": 32}})
    odd = config(tmp_path / "none").model_copy(
        update={"input": InputConfig.model_validate(WINDOWED | {"windows": {"sides_px": [48], "step_px": 24}})}
    )
    with pytest.raises(ConfigError, match="a multiple of 16, not 24"):
        network_of(odd)


def test_a_shipped_model_s_weights_teach_a_last_layer_anew(
    model: Path, run: Run, drawn_index: Path, tmp_path: Path
) -> None:
    out = tmp_path / "taken"
    result = CliRunner().invoke(app, ["unpack", str(model), str(out)])
    assert result.exit_code == 0, result.output
    own = round_to_half(run.load_network()).state_dict()
    taken = load_file(out / "weights.safetensors")
    assert set(taken) == {name for name in own if not name.endswith("num_batches_tracked")}
    for name, values in taken.items():
        assert torch.equal(values, own[name]), name
    again = config(out / "weights.safetensors")
    probe(again, drawn_index, tmp_path / "again")
    assert torch.allclose(
        Run(tmp_path / "again").load_network().head.logits.weight, run.load_network().head.logits.weight, atol=0.05
    )
    made_by = lineage(again)
    assert made_by[0]["taken_from"]["model"] == "tiny-windows 1.0.0"
    assert [entry["configuration"]["name"] for entry in made_by] == ["tiny-windows"] * 2
    with pytest.raises(RunError, match="exists"):
        unpack(model, out)
    with pytest.raises(RunError, match="no variant int8; it has none"):
        unpack(model, tmp_path / "other", "int8")


def test_a_variant_of_8_bits_is_taken_out_as_it_is(model: Path, run: Run, drawn_index: Path, tmp_path: Path) -> None:
    start = run.config().model.start.file
    assert start is not None
    rounded = Run(tmp_path / "rounded")
    probe(config(start, quantised=True), drawn_index, rounded.folder)
    evaluate(rounded, pictures=2)
    folder = add_variant(model, rounded, "int8", f"1.0.{len(list(model.parent.iterdir()))}")
    taken = load_file(unpack(folder, tmp_path / "taken", "int8"))
    own = rounded.load_network().state_dict()
    assert set(taken) == set(own)
    for name, values in taken.items():
        if name.startswith("backbone.") and not name.endswith(("bias", ".weight")):
            assert torch.equal(values, own[name]), name
    again = Run(tmp_path / "again")
    probe(
        config(tmp_path / "taken" / "weights.safetensors", quantised=True),
        drawn_index,
        again.folder,
    )
    assert torch.equal(again.load_network().state_dict()["backbone.conv_stem.weight"], own["backbone.conv_stem.weight"])
