"""The whole training on drawn cells: features, fit, resume, evaluation, export, and its commands."""

import json
import re
from pathlib import Path

import lightning as L
import numpy as np
import onnx
import polars as pl
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score, roc_auc_score
from typer.testing import CliRunner

from app.core.spec import CARD_FILE, MANIFEST_FILE, MODEL_FILE, Manifest
from tests.training.conftest import feature_config, run_config, write_toml
from training.card import model_card
from training.cli import app
from training.compare import read_reports, results_page
from training.data.arrays import load_inputs, read_cells
from training.data.datamodule import CellData
from training.data.index import load_index
from training.distil import FeatureModule, distil, unexplained_variance
from training.errors import ConfigError, DataError, ParityError, RunError
from training.evaluate import evaluate
from training.export import export, lineage, next_version
from training.fit import fit
from training.graph import Served, round_to_half
from training.licence import CNMC
from training.module import CellModule, Scaled
from training.novelty.judge import draw_pictures
from training.novelty.score import Novelty
from training.observer import seen_from
from training.parity import check_parity, onnx_outputs
from training.quantise import calibration_cells
from training.run import Run
from training.trainer import hushed, prepare
from training.zoo import create
from training.zoo.activations import set_activation_progress


@pytest.fixture(scope="module")
def fitted(drawn_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run, trained and judged."""
    run = fit(run_config(), drawn_index, tmp_path_factory.mktemp("runs") / "tiny", progress=False).run
    evaluate(run, pictures=2)
    return run


@pytest.fixture(scope="module")
def exported(fitted: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return export(fitted, tmp_path_factory.mktemp("models"), "1.2.3")


def served_by(run: Run) -> Served:
    """What an export of a run computes."""
    novelty = Novelty.load(run.folder / "novelty.safetensors")
    return Served(round_to_half(run.load_network()), run.config().input.spec(), novelty).eval()


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "weights.safetensors")


def test_a_fit_changes_the_weights_and_logs_its_figures(fitted: Run) -> None:
    torch.manual_seed(0)
    logs = pl.read_csv(fitted.folder / "logs" / "metrics.csv")
    assert {"train_loss", "val_loss", "val_auroc", "val_weighted_f1"} <= set(logs.columns)
    assert logs["val_auroc"].drop_nulls().len() == 2
    assert fitted.last_checkpoint() is not None


def test_frozen_statistics_stay_as_they_started(fitted: Run) -> None:
    fresh = create("efficientnet-b3", 40).state_dict()
    state = weights(fitted)
    name = "backbone.blocks.3.0.bn1.running_var"
    assert torch.equal(state[name], fresh[name])
    assert not torch.equal(state["head.norm.running_var"], fresh["head.norm.running_var"])


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    fitted: Run, drawn_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "interrupted"
    step = CellModule.training_step

    def die_in_the_second_epoch(self: CellModule, *args: object) -> torch.Tensor:
        if self.current_epoch == 1:
            raise OSError("the power is gone")
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CellModule, "training_step", die_in_the_second_epoch)
    with pytest.raises(OSError, match="power"):
        fit(run_config(), drawn_index, folder, progress=False)
    monkeypatch.undo()
    resumed = fit(run_config(), drawn_index, folder, progress=False).run
    expected, actual = weights(fitted), weights(resumed)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=0, atol=0, msg=name)


def test_a_finished_run_stays_as_it_is(fitted: Run, drawn_index: Path) -> None:
    before = weights(fitted)
    again = fit(run_config(), drawn_index, fitted.folder, progress=False)
    assert again.best_loss > 0
    for name, tensor in weights(again.run).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg=name)


def test_an_unknown_network_is_an_error(drawn_index: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.network: unknown network 'resnet-9000'"):
        fit(run_config(model={"network": "resnet-9000"}), drawn_index, tmp_path / "run", progress=False)


def test_another_configuration_can_not_go_on_in_the_same_folder(fitted: Run, drawn_index: Path) -> None:
    with pytest.raises(RunError, match="another configuration"):
        fit(run_config(seed=8), drawn_index, fitted.folder, progress=False)


def test_a_run_that_could_not_start_leaves_its_folder_to_a_better_configuration(
    drawn_index: Path, tmp_path: Path
) -> None:
    start = {"kind": "file", "file": str(tmp_path / "nowhere.safetensors"), "licence": "ours"}
    with pytest.raises(ConfigError, match="no start weights"):
        fit(run_config(model={"network": "efficientnet-lite0", "start": start}), drawn_index, tmp_path, progress=False)
    better = run_config(fit={"epochs": 1, "batch_size": 4, "accelerator": "cpu"})
    assert fit(better, drawn_index, tmp_path, progress=False).run.config() == better


def test_a_loss_that_is_no_number_stops_the_run_and_the_last_good_epoch_stays(
    drawn_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify = CellModule._classify

    def overflow_in_the_second_epoch(self: CellModule, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, penalty = classify(self, images)
        return logits, penalty * (float("nan") if self.current_epoch else 1)

    monkeypatch.setattr(CellModule, "_classify", overflow_in_the_second_epoch)
    with pytest.raises(RunError, match="the loss is nan at step 2; the last checkpoint is that of the epoch before"):
        fit(run_config(), drawn_index, tmp_path / "nan", progress=False)
    kept = torch.load(tmp_path / "nan" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


def test_missing_start_weights_are_an_error(drawn_index: Path, tmp_path: Path) -> None:
    start = {"kind": "file", "file": str(tmp_path / "missing.safetensors")}
    config = run_config(model={"network": "efficientnet-b3", "start": start})
    with pytest.raises(ConfigError, match="leukoscope-train distil"):
        fit(config, drawn_index, tmp_path / "run", progress=False)


def test_start_weights_of_another_network_are_an_error(drawn_index: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"conv_stem.weight": torch.zeros(1)}, file)
    config = run_config(model={"network": "efficientnet-b3", "start": {"kind": "file", "file": str(file)}})
    with pytest.raises(ConfigError, match="not those of this network"):
        fit(config, drawn_index, tmp_path / "run", progress=False)


def test_a_picture_that_changed_since_it_was_indexed_is_an_error(drawn_index: Path, tmp_path: Path) -> None:
    cells = pl.read_parquet(drawn_index).with_columns(sha256=pl.lit("0" * 64))
    with pytest.raises(DataError, match="has changed"):
        load_inputs(cells, drawn_index.parent, run_config().input.spec(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_features_are_measured_in_float32_whatever_they_are_taught_in(drawn_index: Path, tmp_path: Path) -> None:
    relative = tmp_path / "relative.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("tf_efficientnet_lite2").state_dict(), relative)
    config = feature_config(relative)
    _, data, network = prepare(config, drawn_index, tmp_path / "features")
    module = FeatureModule(network, config)
    set_activation_progress(network, 1.0)
    found = []
    for precision in ("32-true", "bf16-mixed"):
        trainer = L.Trainer(
            accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        with hushed():
            (measured,) = trainer.validate(module, datamodule=CellData(data, batch_size=4), verbose=False)
        found.append(measured["val_unexplained"])
    assert 0 < found[0] == found[1]


def test_features_are_taught_and_can_start_a_classifier(drawn_index: Path, tmp_path: Path) -> None:
    relative = tmp_path / "relative.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("tf_efficientnet_lite2").state_dict(), relative)
    unexplained = distil(feature_config(relative), drawn_index, tmp_path / "features", progress=False)
    assert np.isfinite(unexplained)
    again = distil(feature_config(relative), drawn_index, tmp_path / "features", progress=False)
    assert again == pytest.approx(unexplained, rel=1e-6)
    file = tmp_path / "features" / "weights.safetensors"
    config = run_config(model={"network": "efficientnet-b3", "start": {"kind": "file", "file": str(file)}})
    run = fit(config, drawn_index, tmp_path / "run", progress=False).run
    name = "backbone.conv_stem.weight"
    torch.testing.assert_close(weights(run)[name], load_file(file)["conv_stem.weight"], rtol=0, atol=0.01)
    assert run.any_config() == run.config()
    assert [entry["configuration"]["name"] for entry in lineage(config)] == ["tiny", "tiny-features"]
    file.unlink()
    with pytest.raises(RunError, match="start weights are gone"):
        lineage(config)


def test_unexplained_variance_is_0_for_the_same_and_1_for_the_mean() -> None:
    wanted = torch.randn(4, 8, 5, 5)
    mean = wanted.mean(dim=(0, 2, 3), keepdim=True).expand_as(wanted)
    assert float(unexplained_variance(wanted, wanted)) == 0
    assert float(unexplained_variance(mean, wanted)) == pytest.approx(1, abs=0.03)


def test_the_report_can_be_recomputed_from_the_predictions(fitted: Run) -> None:
    report = json.loads((fitted.folder / "report.json").read_text())
    table = pl.read_parquet(fitted.folder / "predictions.parquet").filter(part="test")
    truth = (table["label"] == "ALL").to_numpy()
    probability = table["probability_all"].to_numpy()
    assert report["test"]["auroc"] == pytest.approx(roc_auc_score(truth, probability))
    assert report["test"]["weighted_f1"] == pytest.approx(f1_score(truth, probability >= 0.5, average="weighted"))
    assert set(table["subject"]) == set(report["split"]["test_subjects"])
    logits = table.select("logit_all", "logit_hem").to_numpy() / report["temperature"]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(logits[:, 1] - logits[:, 0])), rtol=1e-6)


def test_the_page_needs_nothing_else_and_has_the_reports_figures(fitted: Run) -> None:
    page = (fitted.folder / "report.html").read_text()
    report = json.loads((fitted.folder / "report.json").read_text())
    assert f"{report['test']['weighted_f1']:.4f}" in page
    assert page.count("<svg") == 6
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    wrong = sum(map(sum, report["test"]["confusion"]["counts"])) * (1 - report["test"]["accuracy"])
    assert page.count("<img") == round(wrong)
    assert "leaks" not in page


def test_a_split_that_leaks_says_so_everywhere(drawn_index: Path, tmp_path: Path) -> None:
    config = run_config(
        model={"network": "efficientnet-lite0"},
        split={"kind": "image", "seed": 123},
        fit={"epochs": 1, "batch_size": 4, "accelerator": "cpu"},
    )
    run = fit(config, drawn_index, tmp_path / "leaking", progress=False).run
    report = evaluate(run, pictures=2)
    assert report["split"]["leaks"]
    assert "LEAKING" in report["split"]["name"]
    assert "This split leaks" in (run.folder / "report.html").read_text()
    folder = export(run, tmp_path / "models", "1.0.0")
    assert "This split leaks" in (folder / CARD_FILE).read_text()
    assert "LEAKING" in Manifest.load(folder).split


def test_more_views_are_averaged_and_kept_apart(fitted: Run) -> None:
    before = (fitted.folder / "report.json").read_bytes()
    report = evaluate(fitted, views=8, pictures=2)
    assert report["views"] == 8
    assert (fitted.folder / "report.json").read_bytes() == before
    assert (fitted.folder / "report-8-views.html").is_file()
    one, eight = (pl.read_parquet(fitted.folder / f"predictions{kind}.parquet") for kind in ("", "-8-views"))
    assert not np.allclose(one["logit_all"], eight["logit_all"])
    data = fitted.load_data()
    row = int(np.flatnonzero(data.cells["path"] == eight["path"][0])[0])
    module = Scaled(fitted.load_network(), fitted.config().input.spec()).eval()
    views = list(seen_from(torch.from_numpy(np.array(data.inputs[row : row + 1])), 8))
    assert len({view.numpy().tobytes() for view in views}) == 8
    with torch.inference_mode():
        logits = torch.cat([module(view) for view in views]).mean(dim=0)
    assert eight["logit_all"][0] == pytest.approx(float(logits[0]), abs=1e-4)


def test_runs_stand_side_by_side_and_beside_what_was_published(fitted: Run, tmp_path: Path) -> None:
    judged = read_reports([fitted.folder])
    page = results_page(judged)
    report = json.loads((fitted.folder / "report.json").read_text())
    assert f"{report['test']['weighted_f1']:.4f} (" in page
    for published in ("0.9550", "0.9406", "0.8749", "0.8649", "0.8186"):
        assert published in page
    shown = CliRunner().invoke(app, ["compare", str(fitted.folder), str(fitted.folder / "report.json")])
    assert shown.exit_code == 0, shown.output
    written = CliRunner().invoke(app, ["results", str(fitted.folder), "--out", str(tmp_path / "RESULTS.md")])
    assert written.exit_code == 0, written.output
    assert (tmp_path / "RESULTS.md").read_text() == page
    with pytest.raises(RunError, match="leukoscope-train evaluate"):
        read_reports([tmp_path])
    (tmp_path / "report.json").write_text('{"model": "old"}')
    with pytest.raises(RunError, match="anew"):
        read_reports([tmp_path])


def test_int8_states_its_loss_and_is_calibrated_on_training_cells(fitted: Run, tmp_path: Path) -> None:
    folder = export(fitted, tmp_path, "1.0.0", precision="int8")
    report = json.loads((folder / "report.json").read_text())["export"]
    assert Manifest.load(folder).precision == "int8"
    assert report["calibration"] == f"{len(fitted.load_data().split.train)} cells of the training part"
    for name, loss in report["loss"].items():
        assert report["test"][name] + loss == pytest.approx(
            json.loads((fitted.folder / "report.json").read_text())["test"][name]
        )
    kinds = [node.op_type for node in onnx.load(folder / MODEL_FILE).graph.node]
    assert "QuantizeLinear" in kinds
    assert "BatchNormalization" not in kinds[: len(kinds) // 2]
    logits = onnx_outputs(
        folder / MODEL_FILE, np.zeros((3, 40, 40, 3), dtype=np.uint8), fitted.config().input.spec()
    ).logits
    assert np.isfinite(logits).all()


def test_only_training_cells_calibrate() -> None:
    inputs = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    chosen = calibration_cells(inputs, np.array([3, 5, 7]))
    assert chosen.reshape(-1).tolist() == [3, 5, 7]


def test_the_contact_sheet_shows_both_classes_before_and_after(drawn_index: Path, tmp_path: Path) -> None:
    config = write_toml(run_config(augment={"flip": 0, "rotate_deg": 90}), tmp_path / "tiny.toml")
    out = tmp_path / "sheet.png"
    words = ["sheet", str(config), "--index", str(drawn_index), "--out", str(out), "--cells", "3", "--views", "2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 44, 3 * 44)
        pixels = np.array(sheet)
    pictures = [[pixels[r : r + 40, c : c + 40] for c in (2, 46, 90)] for r in (2, 46, 90)]
    cells = load_index(drawn_index).filter(label="HEM")
    plain = read_cells(cells[:1], drawn_index.parent, run_config().input.spec())[0]
    assert np.array_equal(pictures[1][0], plain)
    assert not np.array_equal(pictures[1][0], pictures[1][1])


def test_a_run_that_was_not_fitted_can_not_be_judged_or_exported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        evaluate(Run(tmp_path / "nothing"))
    with pytest.raises(RunError, match="is no run"):
        export(Run(tmp_path / "nothing"), tmp_path / "models", "1.0.0")


def test_the_exported_folder_is_whole(exported: Path) -> None:
    manifest = Manifest.load(exported)
    assert {path.name for path in exported.iterdir()} == {*manifest.files, MANIFEST_FILE}
    assert (manifest.name, manifest.version, manifest.labels) == ("tiny", "1.2.3", ("ALL", "HEM"))
    assert manifest.split.startswith("subject-disjoint")
    card = (exported / CARD_FILE).read_text()
    report = json.loads((exported / "report.json").read_text())
    assert f"{report['test']['auroc']:.3f}" in card
    assert report["split"]["name"] in card
    assert manifest.provenance["data"] == manifest.licence["data"] == CNMC
    assert f"Weights: not stated. Start weights: none: random initialisation. Data: {CNMC}." in card
    assert "One laboratory, one stain" in card
    of_own = model_card(run_config(), report, "1.0.0", manifest.licence | {"data": "cells of Ward 3"})
    assert not any(word in of_own for word in ("C-NMC", "One laboratory"))
    assert [path.name for path in exported.parent.iterdir()] == ["1.2.3"]


def test_the_exported_graph_stores_half_and_computes_what_the_network_does(exported: Path, fitted: Run) -> None:
    graph = onnx.load(exported / MODEL_FILE)
    assert (exported / MODEL_FILE).stat().st_size < 25_000_000
    assert graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    served = served_by(fitted)
    images = np.random.default_rng(0).integers(0, 256, size=(5, 40, 40, 3), dtype=np.uint8)
    assert check_parity(served, exported / MODEL_FILE, images, served.spec).cells == 5
    outputs = [(node.name, len(node.type.tensor_type.shape.dim)) for node in graph.graph.output]
    assert outputs == [("logits", 2), ("features", 2), ("evidence", 3), ("novelty", 1)]


def test_novelty_is_fitted_judged_and_shipped(exported: Path, fitted: Run) -> None:
    report = json.loads((exported / "report.json").read_text())["novelty"]
    manifest = Manifest.load(exported)
    assert manifest.novelty is not None
    assert (manifest.novelty.method, manifest.novelty.threshold) == (report["method"], report["threshold"])
    data, spec = fitted.load_data(), fitted.config().input.spec()
    of_cells = onnx_outputs(exported / MODEL_FILE, data.inputs[data.split.test], spec).novelty
    assert report["cells_flagged"]["test"] == pytest.approx((of_cells > report["threshold"]).mean())
    drawn = draw_pictures(data, fitted.index().parent, spec, 2)
    for kind in report["kinds"]:
        scores = onnx_outputs(exported / MODEL_FILE, drawn[kind["kind"]], spec).novelty
        assert kind["flagged"] == (scores > report["threshold"]).mean(), kind["kind"]
    card = (exported / CARD_FILE).read_text()
    page = (fitted.folder / "report.html").read_text()
    for text in (card, page):
        assert all(name in text for name in ("smear field", "cell cut by the border", "out of focus"))
    assert f"{report['threshold']:.3f}" in card


def test_an_export_without_fitted_novelty_wants_an_evaluation(fitted: Run, tmp_path: Path) -> None:
    old = Run(tmp_path / "old")
    old.folder.mkdir()
    for name in ("config.json", "weights.safetensors", "report.json"):
        (old.folder / name).write_bytes((fitted.folder / name).read_bytes())
    with pytest.raises(RunError, match="evaluate the run anew"):
        export(old, tmp_path / "models", "1.0.0")


def test_parity_notices_a_wrong_graph(exported: Path, fitted: Run) -> None:
    served = served_by(fitted)
    with torch.no_grad():
        served.network.head.logits.bias.add_(torch.tensor([0.01, 0.0]))
    images = np.zeros((2, 40, 40, 3), dtype=np.uint8)
    with pytest.raises(ParityError, match="differs"):
        check_parity(served, exported / MODEL_FILE, images, served.spec)


def test_an_answer_does_not_depend_on_its_batch(exported: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, size=(7, 40, 40, 3), dtype=np.uint8)
    spec = Manifest.load(exported).preprocessing
    together = onnx_outputs(exported / MODEL_FILE, images, spec)
    alone = [onnx_outputs(exported / MODEL_FILE, image[None], spec) for image in images]
    for values, single in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(values, np.concatenate(single), rtol=1e-5, atol=1e-6)


def test_the_graph_was_judged_on_the_whole_test_part(exported: Path) -> None:
    report = json.loads((exported / "report.json").read_text())
    assert report["export"]["test"]["auroc"] == pytest.approx(report["test"]["auroc"], abs=0.002)
    assert report["export"]["bytes"] == (exported / MODEL_FILE).stat().st_size


def test_no_path_of_the_machine_is_in_the_graph(exported: Path) -> None:
    graph = (exported / MODEL_FILE).read_bytes()
    assert b"site-packages" not in graph
    assert b"training/" not in graph


@pytest.mark.parametrize(
    ("existing", "expected"),
    [([], "1.0.0"), (["1.0.0"], "1.1.0"), (["1.9.0", "1.10.2", "notes"], "1.11.0"), (["1.3.0", "2.0.1"], "2.1.0")],
)
def test_the_next_version_is_one_minor_step_on(existing: list[str], expected: str, tmp_path: Path) -> None:
    for name in existing:
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == expected


def test_a_version_is_not_written_twice(exported: Path, fitted: Run) -> None:
    with pytest.raises(RunError, match="exists"):
        export(fitted, exported.parent.parent, "1.2.3")


def test_the_commands_from_folder_to_model(drawn_index: Path, tmp_path: Path) -> None:
    config = write_toml(run_config(fit={"epochs": 1, "batch_size": 4, "accelerator": "cpu"}), tmp_path / "tiny.toml")
    index, run, models = (str(tmp_path / name) for name in ("cells.parquet", "run", "models"))
    for words in (
        ["index", str(drawn_index.parent), "--out", index],
        ["fit", str(config), "--index", index, "--out", run],
        ["evaluate", run, "--pictures", "2"],
        ["export", run, "--version", "0.1.0", "--models", models, "--activate"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{words}: {result.output}\n{result.exception!r}"
    assert Manifest.load(Path(models) / "tiny" / "0.1.0").version == "0.1.0"
    assert json.loads((Path(models) / "active.json").read_text()) == {"name": "tiny", "version": "0.1.0"}
