"""Networks of first stages, how their last layer is solved, and how a model of all subjects is judged."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from app.core.spec import CARD_FILE, Manifest
from tests.training.conftest import INPUT, SPLIT, run_config
from training.cli import app
from training.config import ProbeRunConfig
from training.data.drawn import cell_bytes, write_dataset
from training.data.index import INDEX_FILE, build_index, write_index
from training.data.labels import ALL
from training.data.splits import cut_by_subject
from training.errors import ConfigError, DataError, RunError
from training.evaluate import evaluate
from training.export import export
from training.fit import fit
from training.probe import held_out, probe, solve
from training.recalibrate import recalibrate
from training.run import Run
from training.tables import StartConfig
from training.zoo import create
from training.zoo.activations import set_activation_progress
from training.zoo.staged import StagedClassifier, StatisticsHead
from training.zoo.start import apply_start

SCALING = ((127.0,) * 3, (128.0,) * 3)


def staged(network: str = "efficientnet-lite0-stages") -> StagedClassifier:
    torch.manual_seed(0)
    made = create(network, 64, scaling=SCALING)
    assert isinstance(made, StagedClassifier)
    return made.eval()


def head(network: StagedClassifier) -> StatisticsHead:
    assert isinstance(network.head, StatisticsHead)
    return network.head


def cells(count: int = 3) -> torch.Tensor:
    """Scaled pictures of coloured noise in a square on black."""
    pictures = torch.zeros(count, 3, 64, 64)
    pictures[:, :, 16:48, 16:48] = 40 + 200 * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return (pictures - 127) / 128


def config(split: dict[str, object], start: Path | None = None, **changes: Any) -> ProbeRunConfig:
    model: dict[str, object] = {"network": "efficientnet-lite0-stages", "freeze": True}
    if start:
        model["start"] = {"kind": "file", "file": str(start), "licence": "random, for a test"}
    tables = {
        "name": "tiny-probe",
        "seed": 7,
        "model": model,
        "split": SPLIT | split,
        "input": INPUT,
        "augment": {"flip": 0},
        "probe": {"strengths": [1e-3, 1e-1]},
    }
    return ProbeRunConfig.model_validate(tables | changes)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a whole EfficientNet-Lite0, of which the first stages are used."""
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("start") / "lite0.safetensors"
    save_file(create("efficientnet-lite0", 64).backbone.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def judges(drawn_index: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The same recipe on either fold, judged on the other one."""
    runs = []
    for fold in (0, 1):
        folder = tmp_path_factory.mktemp("runs") / f"fold-{fold}"
        probe(config({"kind": "fold", "test_fold": fold}, start), drawn_index, folder)
        runs.append(Run(folder))
        evaluate(runs[-1], pictures=2)
    return runs


@pytest.fixture(scope="module")
def whole(drawn_index: Path, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same recipe on all subjects."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    probe(config({"kind": "all"}, start), drawn_index, folder)
    return Run(folder)


def test_statistics_are_of_the_cell_and_not_of_the_black_around_it() -> None:
    network = staged()
    statistics = network.feature_map(cells())
    brighter = cells()
    cell = network._views(cells())[0].weights
    assert torch.allclose(cell.sum(dim=(1, 2, 3)), torch.ones(3))
    assert (cell[:, :, :4] == 0).all()  # 8 px of black at a quarter of the size, and a margin
    brighter[:, :, 16:48, 16:48] += 0.5
    assert not torch.allclose(statistics, network.feature_map(brighter), atol=1e-3)


def test_statistics_are_mean_and_deviation_over_the_cell() -> None:
    network = staged()
    with torch.no_grad():
        features = network.backbone.blocks[0](network.backbone.bn1(network.backbone.conv_stem(cells(1))))[0]
        statistics = network.feature_map(cells(1))[0]
    side = features.shape[-1]
    first = slice(side // 4, 3 * side // 4)
    inside = features[:, first, first].flatten(1)
    channels = len(inside)
    assert torch.allclose(statistics[:channels], inside.mean(dim=1), atol=1e-4)
    assert torch.allclose(statistics[channels : 2 * channels], inside.std(dim=1, correction=0), atol=1e-4)


def test_evidence_adds_up_to_the_margin() -> None:
    network = staged()
    with torch.no_grad():
        head(network).standardise.fit(network.feature_map(cells(3)) * torch.rand(3, 1))
        explained = network.explain(cells(2))
        margin = explained.logits[:, 0] - explained.logits[:, 1]
        bias = head(network).logits.bias[0] - head(network).logits.bias[1]
    assert torch.allclose(explained.evidence.sum(dim=(1, 2)) + bias, margin, atol=1e-3)
    assert torch.allclose(explained.logits, network(cells(2)))
    assert (explained.evidence[:, 0] == 0).all()  # nothing speaks from the black


def test_a_grown_network_of_stages_has_its_relatives_statistics(tmp_path: Path) -> None:
    torch.manual_seed(5)
    relative: Any = timm.create_model("tf_efficientnet_lite2", num_classes=0)
    save_file(relative.state_dict(), tmp_path / "lite2.safetensors")
    grown = staged("efficientnet-b3-stages")
    given = StartConfig(kind="grown", relative="tf_efficientnet_lite2", file=tmp_path / "lite2.safetensors")
    apply_start(grown, given, 0)
    set_activation_progress(grown, 0.0)
    grown.eval()
    pictures = cells(2)
    with torch.no_grad():
        features = relative.eval().bn1(relative.conv_stem(pictures))
        wanted = relative.blocks[:5](features)
        actual = grown.backbone.blocks(grown.backbone.bn1(grown.backbone.conv_stem(pictures)))
    assert torch.allclose(actual[:, : wanted.shape[1]], wanted, atol=1e-3)


def test_solving_is_a_logistic_regression_on_standardised_features() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (200, 5))
    truth = features @ rng.normal(size=5) + rng.normal(size=200) > 6
    solved = solve(features, truth, strength=0.1)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    other = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-8).fit(standardised, truth)
    assert np.allclose(solved.margin(features), other.decision_function(standardised), atol=1e-2)


def test_the_stored_network_says_what_was_solved(judges: list[Run]) -> None:
    run = judges[0]
    data = run.load_data()
    held_out = run.held_out(data)
    assert held_out is not None
    learnt = np.sort(np.concatenate([data.split.train, data.split.validation]))
    assert np.array_equal(held_out.rows, learnt)
    validation = pl.read_parquet(run.folder / "predictions.parquet").filter(pl.col("part") == "validation")
    assert len(validation) == len(learnt)
    assert np.allclose(validation["logit_all"] + validation["logit_hem"], 0)


def test_held_out_answers_did_not_see_their_subject(judges: list[Run]) -> None:
    data, split = judges[1].load_data(), judges[1].config().split
    rows = np.sort(np.concatenate([data.split.train, data.split.validation]))
    features = np.random.default_rng(0).normal(size=(len(data.cells), 1, 4)).astype(np.float32)
    margins = held_out(features, data, rows, split, strength=0.1)
    truth = data.targets == ALL
    cuts = cut_by_subject(data.cells, rows, split)
    assert len(cuts) == 3
    for learnt, held in cuts:
        assert not set(data.groups[learnt]) & set(data.groups[held])
        solved = solve(features[learnt, 0].astype(np.float64), truth[learnt], strength=0.1)
        there = np.searchsorted(rows, held)
        assert np.allclose(margins[there], solved.margin(features[held, 0].astype(np.float64)))


def test_a_model_of_all_subjects_is_judged_by_others(whole: Run, judges: list[Run], tmp_path: Path) -> None:
    report = evaluate(whole, pictures=2, judged_by=judges)
    tests = [json.loads((run.folder / "report.json").read_text())["test"] for run in judges]
    assert report["test"]["cells"] == sum(test["cells"] for test in tests)
    # A temperature moves probabilities, and no label.
    right = sum(test["accuracy"] * test["cells"] for test in tests) / report["test"]["cells"]
    table = pl.read_parquet(whole.folder / "predictions.parquet").filter(pl.col("part") == "test")
    margin = (table["logit_all"] - table["logit_hem"]).to_numpy()
    assert np.allclose(table["probability_all"], 1 / (1 + np.exp(-margin / report["temperature"])))
    assert report["test"]["accuracy"] == pytest.approx(right)
    assert [one["run"] for one in report["split"]["judged_by"]] == ["fold-0", "fold-1"]
    folder = export(whole, tmp_path / "models", "1.0.0")
    card = (folder / CARD_FILE).read_text()
    assert "learnt from all subjects" in card
    assert Manifest.load(folder).novelty is not None
    with pytest.raises(RunError, match="8 bits"):
        export(whole, tmp_path / "models", "1.0.1", precision="int8")


def test_a_model_of_all_subjects_wants_runs_that_judge_it(
    whole: Run, judges: list[Run], drawn_index: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="--judged-by"):
        evaluate(whole, pictures=2)
    with pytest.raises(RunError, match="share test cells"):
        evaluate(whole, pictures=2, judged_by=[judges[0], judges[0]])
    other = fit(run_config(), drawn_index, tmp_path / "other", progress=False).run
    with pytest.raises(RunError, match="another configuration"):
        evaluate(whole, pictures=2, judged_by=[other])


def test_a_start_file_of_another_network_is_refused(tmp_path: Path) -> None:
    save_file({"conv_stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="not those of this network"):
        apply_start(staged(), StartConfig(kind="file", file=tmp_path / "other.safetensors"), 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": {"flip": 0, "rotate_deg": 10}},
        {"model": {"network": "efficientnet-lite0-stages", "freeze": False}},
        {"model": {"network": "efficientnet-b0", "freeze": True}},
    ],
)
def test_a_probe_of_what_is_not_frozen_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a probe wants"):
        config({"kind": "all"}, None, **changes)


def test_the_command_solves_and_judges(drawn_index: Path, start: Path, tmp_path: Path) -> None:
    words = ["probe", "training/configs/efficientnet-lite0.toml", "--index", str(drawn_index), "--split", "fold:1"]
    words += ["--start", str(start), "--set", "input.size_px=48", "--set", "input.windows.sides_px=[32]"]
    words += ["--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "cross-entropy of held-out subjects" in result.output.replace("\n", " ")
    assert (tmp_path / "run" / "weights.safetensors").is_file()


def test_a_model_is_fitted_to_another_site(
    whole: Run, judges: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(whole, pictures=2, judged_by=judges)
    folder = export(whole, tmp_path / "models", "1.0.0")
    site = write_dataset(tmp_path / "site", folds=1, subjects=3, cells=2)
    for label in ("all", "hem"):  # a picture with both labels, which says nothing
        doubtful = next(site.rglob("all")).parent / label / f"UID_77_1_1_{label}.bmp"
        doubtful.write_bytes(cell_bytes("ALL", 77))
    index = site / INDEX_FILE
    write_index(build_index(site, index), index)
    with pytest.raises(DataError, match="6 ALL, 6 HEM cells; expected at least 50 of each"):
        recalibrate(folder, index, "1.1.0")
    monkeypatch.setattr("training.recalibrate._LEAST_CELLS", 6)
    made = recalibrate(folder, index, "1.1.0")
    old, new = Manifest.load(folder), Manifest.load(made)
    assert new.version == "1.1.0"
    assert new.temperature != old.temperature
    assert (made / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    for name, digest in new.files.items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == digest
    done = json.loads((made / "report.json").read_text())["recalibration"]
    assert (done["cells"], done["subjects"], done["of"]) == (12, 6, "1.0.0")
    assert "Recalibrated" in (made / CARD_FILE).read_text()
    assert "Recalibrated" not in (folder / CARD_FILE).read_text()
    with pytest.raises(RunError, match="exists"):
        recalibrate(folder, index, "1.1.0")
