"""No run starts from weights that were told the labels of subjects who shall test it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import INPUT, feature_config, run_config
from training.config import DataConfig, ProbeRunConfig
from training.data.dataset import Data
from training.descent import check_start
from training.errors import RunError
from training.run import Run

TO_FOLD_1: dict[str, Any] = {"kind": "fold", "test_fold": 1, "parts": 3}
TO_FOLD_0 = TO_FOLD_1 | {"test_fold": 0}
SPLITS: dict[str, dict[str, Any]] = {
    "same": TO_FOLD_1,
    "reverse": TO_FOLD_0,
    "image": {"kind": "image"},
    "all": {"kind": "all", "parts": 3},
}


def started_from(file: Path | None, split: dict[str, Any]) -> dict[str, Any]:
    start = {"kind": "file", "file": str(file)} if file else {"kind": "random"}
    return {"model": {"network": "efficientnet-lite0-stages", "start": start}, "split": split}


def probe_config(file: Path | None, split: dict[str, Any]) -> ProbeRunConfig:
    tables = started_from(file, split)
    tables["model"]["freeze"] = True
    return ProbeRunConfig.model_validate({"name": "a-probe", "seed": 0, "input": INPUT, "probe": {}} | tables)


def made(folder: Path, config: DataConfig, index: Path) -> Path:
    """The weights of a run, as far as what lies beside them says."""
    Run(folder).start(config, index, "")
    return folder / "weights.safetensors"


def check(config: DataConfig, index: Path) -> None:
    check_start(config, Data.load(index, config, index.parent / "cache"))


@pytest.mark.parametrize(("split", "leaks"), [("same", False), ("reverse", True), ("image", True), ("all", True)])
def test_a_fit_does_not_go_on_from_a_fit_that_learnt_from_its_test(
    drawn_index: Path, tmp_path: Path, split: str, leaks: bool
) -> None:
    file = made(tmp_path / "first", run_config(**started_from(None, SPLITS[split])), drawn_index)
    config = run_config(**started_from(file, TO_FOLD_1))
    if leaks:
        with pytest.raises(RunError, match=r"learnt from \d of the 6 subjects of the test part \("):
            check(config, drawn_index)
    else:
        check(config, drawn_index)


def test_a_split_that_leaks_anyhow_or_has_no_test_part_may(drawn_index: Path, tmp_path: Path) -> None:
    file = made(tmp_path / "first", run_config(**started_from(None, TO_FOLD_0)), drawn_index)
    for split in (SPLITS["image"], SPLITS["all"]):
        check(run_config(**started_from(file, split)), drawn_index)


def test_a_probe_solves_its_layer_anew_and_features_have_no_labels(drawn_index: Path, tmp_path: Path) -> None:
    probed = made(tmp_path / "probe", probe_config(None, TO_FOLD_0), drawn_index)
    features = feature_config(tmp_path / "relative").model_copy(update={"split": probe_config(None, TO_FOLD_0).split})
    taught = made(tmp_path / "features", features, drawn_index)
    check(probe_config(probed, TO_FOLD_1), drawn_index)
    check(run_config(**started_from(taught, TO_FOLD_1)), drawn_index)
    with pytest.raises(RunError, match="the run a-probe"):
        check(run_config(**started_from(probed, TO_FOLD_1)), drawn_index)


def test_what_came_before_the_start_counts_too(drawn_index: Path, tmp_path: Path) -> None:
    first = made(tmp_path / "first", run_config(**started_from(None, TO_FOLD_0)), drawn_index)
    second = made(tmp_path / "second", probe_config(first, TO_FOLD_1), drawn_index)
    for config in (probe_config(second, TO_FOLD_1), run_config(**started_from(second, TO_FOLD_1))):
        with pytest.raises(RunError, match="the run tiny that these start weights are of"):
            check(config, drawn_index)


def test_a_model_s_weights_are_asked_by_its_lineage(drawn_index: Path, tmp_path: Path) -> None:
    for number, (split, leaks) in enumerate(((TO_FOLD_0, True), (TO_FOLD_1, False))):
        folder = tmp_path / str(number)
        folder.mkdir()
        entry = {"configuration": run_config(**started_from(None, split)).model_dump(mode="json")}
        (folder / "source.json").write_text(json.dumps({"lineage": [entry]}))
        config = probe_config(folder / "weights.safetensors", TO_FOLD_1)
        if leaks:
            with pytest.raises(RunError, match="start from one with the same --split"):
                check(config, drawn_index)
        else:
            check(config, drawn_index)


def test_an_index_that_is_gone_is_stood_in_for(drawn_index: Path, tmp_path: Path) -> None:
    file = made(tmp_path / "first", run_config(**started_from(None, TO_FOLD_0)), tmp_path / "gone.parquet")
    with pytest.raises(RunError, match="same --split"):
        check(run_config(**started_from(file, TO_FOLD_1)), drawn_index)


@pytest.mark.parametrize("beside", [None, "{}", '{"config": {"split": {"kind": "odd"}, "model": {"start": {}}}}'])
def test_nothing_is_claimed_of_other_files(drawn_index: Path, tmp_path: Path, beside: str | None) -> None:
    if beside is not None:
        (tmp_path / "config.json").write_text(beside)
    check(run_config(**started_from(tmp_path / "weights.safetensors", TO_FOLD_1)), drawn_index)
