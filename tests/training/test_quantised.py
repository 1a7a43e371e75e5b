"""Networks of 8 bits: what they compute, what is written of them, and a model that has one beside it."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from app.core.spec import CARD_FILE, MODEL_FILE, Manifest
from app.cpus import saturates_8_bits
from app.inference.opening import open_session
from app.inference.providers import Placement
from tests.training.conftest import INPUT, SPLIT, run_config, some_novelty
from training.cli import app
from training.config import ProbeRunConfig
from training.errors import ParityError, RunError
from training.evaluate import evaluate
from training.export import export
from training.folder import read_report
from training.graph import Served, round_to_half, write_onnx
from training.parity import check_parity, onnx_outputs
from training.probe import probe
from training.recalibrate import recalibrate
from training.run import Run
from training.variants import add_variant
from training.zoo import create
from training.zoo.activations import Relu6ToHardSwish, set_activation_progress
from training.zoo.classifier import Classifier
from training.zoo.quantised import QuantisedConv, lay_out, quantise, spread_anew

SCALING = ((127.0,) * 3, (128.0,) * 3)
SIDE = 64


def pictures(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Pictures of every value, 0..255, in a square on black, shape ``(count, side, side, 3)``, uint8."""
    drawn = torch.zeros(count, SIDE, SIDE, 3, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    drawn[:, 8:56, 8:56] = torch.randint(0, 256, (count, 48, 48, 3), generator=generator).to(torch.uint8)
    return drawn


def scaled(images: torch.Tensor) -> torch.Tensor:
    return (images.permute(0, 3, 1, 2).float() - 127) / 128


def network(name: str = "efficientnet-b3-stages", activation: Any = "hard-swish") -> Classifier:
    torch.manual_seed(0)
    made = create(name, SIDE, scaling=SCALING, activation=activation)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return made.eval()


@torch.no_grad()
def rounded(made: Classifier) -> Classifier:
    """The same network with 8 bits, for the values of some pictures."""
    made = copy.deepcopy(made)
    quantise(made.backbone, (made(scaled(pictures(seed=seed))) for seed in range(2)))
    return made


def test_a_convolution_of_whole_numbers_is_exact() -> None:
    plain = nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1)
    conv = QuantisedConv(plain)
    weight = torch.randint(-127, 128, plain.weight.shape).float() / 64
    weight[:, 0, 0, 0] = 127 / 64  # so that the scale is just 1/64
    bias = torch.randn(4)
    conv.set(weight, bias, lowest=-32 / 16, highest=223 / 16)
    assert (conv.weight_scale == 1 / 64).all()
    assert (conv.scale.item(), conv.zero_point.item()) == (1 / 16, 32)
    inputs = torch.randint(-32, 224, (2, 3, 9, 9)).float() / 16
    expected = functional.conv2d(inputs, weight, bias, stride=2, padding=1)
    torch.testing.assert_close(conv(inputs), expected)


def test_inputs_are_rounded_and_cut_to_the_range() -> None:
    conv = QuantisedConv(nn.Conv2d(1, 1, 1, bias=False))
    conv.set(torch.ones(1, 1, 1, 1), torch.zeros(1), lowest=-0.1, highest=25.4)
    seen = conv(torch.tensor([-3.0, -0.1, 0.0, 0.04, 0.06, 25.4, 99.0]).view(1, 1, 1, -1)).flatten()
    torch.testing.assert_close(seen, torch.tensor([-0.1, -0.1, 0.0, 0.0, 0.1, 25.4, 25.4]), atol=1e-5, rtol=0)


def test_a_range_always_holds_zero_and_may_be_empty() -> None:
    conv = QuantisedConv(nn.Conv2d(1, 1, 1))
    conv.set(torch.zeros(1, 1, 1, 1), torch.zeros(1), lowest=2.0, highest=4.0)
    assert conv(torch.zeros(1, 1, 1, 1)).item() == 0
    conv.set(torch.zeros(1, 1, 1, 1), torch.zeros(1), lowest=0.0, highest=0.0)
    assert torch.isfinite(conv(torch.ones(1, 1, 1, 1))).all()


@pytest.mark.parametrize("name", ["efficientnet-b3-stages", "efficientnet-lite0-stages"])
def test_a_rounded_network_sees_nearly_the_same(name: str) -> None:
    plain = network(name, "hard-swish" if "b3" in name else "silu")
    made = rounded(plain)
    stem = made.backbone.conv_stem
    # Its inputs are the picture's own 256 values.
    assert (float(stem.scale), int(stem.zero_point)) == (1 / 128, 127)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in made.modules())
    convolutions = [(n, m) for n, m in made.backbone.named_modules() if isinstance(m, nn.Conv2d)]
    assert all(".se." in n for n, _ in convolutions)
    with torch.no_grad():
        expected, actual = (net.feature_map(scaled(pictures(8, seed=9))) for net in (plain, made))
    unexplained = (actual - expected).square().mean(dim=0) / expected.var(dim=0).clamp_min(1e-3)
    # What is rounded is rounded again by each layer: little after the first stage, more at the end.
    assert 0 < unexplained[:16].median() < 1e-2
    assert unexplained.median() < 0.2


def test_ranges_are_found_anew_and_weights_stay() -> None:
    plain = network()
    made = rounded(plain)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    # A picture in which everything is half as far from grey: what each convolution takes is smaller.
    spread_anew(made.backbone, (made(scaled(pictures(seed=seed)) / 2) for seed in range(2)))
    after = made.state_dict()
    stem = made.backbone.conv_stem
    assert float(stem.scale) == pytest.approx(1 / 256, rel=0.02)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith((".scale", ".zero_point")) for name in changed)
    spread_anew(made.backbone, (made(scaled(pictures(seed=seed))) for seed in range(2)))
    assert torch.equal(stem.scale, before["backbone.conv_stem.scale"])


def test_what_has_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="Lite relatives"):
        lay_out(create("resnet50", SIDE).backbone)


def test_stored_numbers_are_found_again() -> None:
    made = rounded(network())
    empty = network()
    lay_out(empty.backbone)
    empty.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(empty(scaled(pictures())), made(scaled(pictures())))


def test_the_graph_has_whole_weights_and_computes_the_same(tmp_path: Path) -> None:
    made = rounded(network())
    spec = run_config(input=INPUT | {"size_px": SIDE, "mean": [127.0] * 3, "std": [128.0] * 3}).input.spec()
    served = Served(round_to_half(made), spec, some_novelty(made, SIDE)).eval()
    file = tmp_path / "model.onnx"
    write_onnx(served, spec, file)
    graph = onnx.load(file).graph
    whole = {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.INT8}
    count = sum(isinstance(module, QuantisedConv) for module in made.modules())
    assert len({name for name in whole if name.endswith(".weight")}) == count
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == count
    images = pictures(8, seed=5).numpy()
    assert check_parity(served, file, images, spec, rounded=True).cells == 8
    with torch.no_grad():
        made.head.logits.bias[0] += 100
    with pytest.raises(ParityError):
        check_parity(served, file, images, spec, rounded=True)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_hard_swish_takes_over_from_relu6(progress: float) -> None:
    activation = Relu6ToHardSwish()
    set_activation_progress(activation, progress)
    x = torch.linspace(-8, 8, 33)
    expected = (1 - progress) * functional.relu6(x) + progress * functional.hardswish(x)
    torch.testing.assert_close(activation(x), expected)


def test_only_networks_with_silu_have_hard_swish() -> None:
    with pytest.raises(ValueError, match="has no SiLU"):
        create("resnet50", SIDE, activation="hard-swish")


def test_a_fit_is_not_quantised() -> None:
    with pytest.raises(ValueError, match="for a probe"):
        run_config(model={"network": "efficientnet-lite0", "quantised": True})


def config(start: Path, *, quantised: bool) -> ProbeRunConfig:
    tables = {
        "name": "tiny-probe",
        "seed": 7,
        "model": {
            "network": "efficientnet-lite0-stages",
            "freeze": True,
            "quantised": quantised,
            "start": {"kind": "file", "file": str(start), "licence": "random, for a test"},
        },
        "split": SPLIT | {"kind": "fold", "test_fold": 1},
        "input": INPUT,
        "augment": {"flip": 0},
        "probe": {"strengths": [1e-2]},
    }
    return ProbeRunConfig.model_validate(tables)


@pytest.fixture(scope="module")
def runs(drawn_index: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same recipe in float32 and with 8 bits, both judged."""
    folder = tmp_path_factory.mktemp("quantised")
    start = folder / "start.safetensors"
    save_file(network("efficientnet-lite0-stages", "silu").backbone.state_dict(), start)
    made = []
    for quantised in (False, True):
        run = Run(folder / f"quantised-{quantised}")
        probe(config(start, quantised=quantised), drawn_index, run.folder)
        evaluate(run, pictures=2)
        made.append(run)
    return made[0], made[1]


@pytest.fixture(scope="module")
def model(runs: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its variant of 8 bits beside it."""
    plain, eight = runs
    base = export(plain, tmp_path_factory.mktemp("models"), "1.0.0")
    return add_variant(base, eight, "int8", "1.1.0")


def test_the_layer_is_taught_on_rounded_features(runs: tuple[Run, Run]) -> None:
    plain, eight = (run.load_network() for run in runs)
    assert any(isinstance(module, QuantisedConv) for module in eight.modules())
    assert not torch.equal(plain.head.logits.weight, eight.head.logits.weight)


def test_a_variant_lies_beside_the_model_that_stays_as_it_was(model: Path, runs: tuple[Run, Run]) -> None:
    old, new = Manifest.load(model.parent / "1.0.0"), Manifest.load(model)
    for name in (MODEL_FILE, "report.json"):
        assert (model / name).read_bytes() == (model.parent / "1.0.0" / name).read_bytes()
    assert {*new.files} == {*old.files, "model.int8.onnx", "report.int8.json"}
    for name, digest in new.files.items():
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest
    report = read_report(model / "report.int8.json")
    variant = new.variants["int8"]
    assert variant.figures["weighted_f1"] == report["test"]["weighted_f1"]
    assert report["export"]["precision"] == "int8"
    own = new.in_precision("int8")
    assert (own.temperature, own.review.low) == (report["temperature"], report["review_band"]["low"])
    assert own.novelty is not None
    assert own.novelty.threshold == report["novelty"]["threshold"]
    assert new.in_precision("fp32") == new
    card = (model / CARD_FILE).read_text()
    assert "## In other precisions" in card
    assert f"| int8 | {report['test']['weighted_f1']:.3f} |" in card
    assert new.provenance["lineage_int8"][0]["configuration"]["model"]["quantised"] is True
    with pytest.raises(RunError, match="exists"):
        add_variant(model.parent / "1.0.0", runs[1], "int8", "1.1.0")


def test_openvino_computes_what_the_network_does(model: Path, runs: tuple[Run, Run]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if saturates_8_bits():
        pytest.skip("this processor has no VNNI or AMX")
    manifest = Manifest.load(model)
    placement = Placement(device="cpu", cpu_engine="openvino", precision="int8")
    session = open_session(model / "model.int8.onnx", manifest, placement)
    data = runs[1].load_data()
    images = np.ascontiguousarray(data.inputs[data.split.test])
    engine = np.concatenate([session.run(image[None]).logits for image in images])
    network = onnx_outputs(model / "model.int8.onnx", images, Manifest.load(model).preprocessing).logits
    assert np.abs(engine - network).max() < 0.1 * np.abs(network).max()


def test_a_variant_takes_the_models_input(
    runs: tuple[Run, Run], model: Path, tmp_path: Path, drawn_index: Path
) -> None:
    other = runs[1].config().model_copy(update={"input": run_config(input=INPUT | {"size_px": 48}).input})
    assert isinstance(other, ProbeRunConfig)
    probe(other, drawn_index, tmp_path / "other")
    with pytest.raises(RunError, match="another input"):
        add_variant(model, Run(tmp_path / "other"), "int8", "9.0.0")


def test_another_sites_cells_calibrate_each_variant(
    model: Path, drawn_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.recalibrate._LEAST_CELLS", 6)
    made = recalibrate(model, drawn_index, "1.2.0")
    new = Manifest.load(made)
    for name in ("report.json", "report.int8.json"):
        assert read_report(made / name)["recalibration"]["of"] == "1.1.0"
    assert new.variants["int8"].temperature == read_report(made / "report.int8.json")["temperature"]
    assert new.temperature == read_report(made / "report.json")["temperature"]


def test_the_command_adds_a_variant(model: Path, runs: tuple[Run, Run]) -> None:
    words = [
        "add-variant",
        str(model.parent / "1.0.0"),
        str(runs[1].folder),
        "--precision",
        "int8",
        "--version",
        "2.0.0",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "int8" in Manifest.load(model.parent / "2.0.0").variants
