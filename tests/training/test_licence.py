"""Manifest and card state whose the data and the weights are, and claim nothing that nobody said."""

import json
from pathlib import Path

import polars as pl
import pytest

from tests.training.conftest import run_config
from training.config import FeatureRunConfig, ProbeRunConfig, RunConfig, load_config
from training.errors import RunError
from training.licence import CNMC, licences
from training.origin import CONFIG_FILE, SOURCE_FILE, origin_of
from training.run import Run

CONFIGS = Path("training/configs")
OURS = {"licence": {"weights": "MIT", "cells": "cells of Ward 3, for research alone"}}


@pytest.mark.parametrize(
    ("sources", "data"),
    [
        (["training", "preliminary"], CNMC),
        (["own", "own"], "cells of Ward 3, for research alone"),
        (["training", "own"], f"{CNMC}; cells of Ward 3, for research alone"),
    ],
)
def test_data_have_the_licence_of_where_they_are_from(sources: list[str], data: str) -> None:
    said = licences(run_config(**OURS), pl.DataFrame({"source": sources}))
    assert said == {"weights": "MIT", "start_weights": "none: random initialisation", "data": data}


def test_what_nobody_stated_is_said_to_be_so() -> None:
    said = licences(run_config(), pl.DataFrame({"source": ["own"]}))
    assert said["weights"] == "not stated"
    assert said["data"] == "cells of one's own, licence not stated"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("efficientnet-b3", ProbeRunConfig),
        ("efficientnet-lite0-int8", ProbeRunConfig),
        ("densenet121", RunConfig),
        ("efficientnet-b3-int8-features", FeatureRunConfig),
    ],
)
def test_what_the_project_ships_is_apache_2(name: str, kind: type[RunConfig]) -> None:
    assert load_config(CONFIGS / f"{name}.toml", kind).licence.weights == "Apache-2.0"


def test_weights_from_an_unknown_file_take_no_licence_from_the_configuration(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "densenet121.toml", RunConfig, tmp_path / "found.safetensors")
    assert config.model.start.licence == "not stated: a file named on the command line"
    assert config.licence.weights == "not stated"
    stated = load_config(
        CONFIGS / "densenet121.toml",
        RunConfig,
        tmp_path / "found.safetensors",
        changes=["licence.weights='MIT'", "model.start.licence='mine'"],
    )
    assert (stated.licence.weights, stated.model.start.licence) == ("MIT", "mine")


def test_weights_of_a_run_bring_what_was_stated_there(tmp_path: Path) -> None:
    settings = {"config": run_config(**OURS).model_dump(mode="json"), "index": "cells.parquet"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings))
    config = load_config(CONFIGS / "densenet121.toml", RunConfig, tmp_path / "weights.safetensors")
    assert config.model.start.licence == "the run tiny (licence: MIT), from none: random initialisation"
    assert config.licence.weights == "Apache-2.0"


def test_weights_of_a_model_bring_what_was_stated_there(tmp_path: Path) -> None:
    source = {"model": "efficientnet-b3 1.2.0", "licence": "a relative", "weights_licence": "Apache-2.0"}
    (tmp_path / SOURCE_FILE).write_text(json.dumps(source))
    licence = origin_of(tmp_path / "weights.safetensors").licence
    assert licence == "efficientnet-b3 1.2.0 (licence: Apache-2.0), from a relative"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}', '{"config": {"name": "a", "model": null}}'])
def test_what_lies_beside_a_file_and_says_nothing_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(text)
    (tmp_path / SOURCE_FILE).write_text(text)
    assert origin_of(tmp_path / "weights.safetensors").weights == "not stated"


def test_a_run_s_licences_can_be_stated_anew_but_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.start(run_config(), tmp_path / "cells.parquet", "0")
    (run.folder / "weights.safetensors").write_bytes(b"")
    run.start(run_config(**OURS), tmp_path / "cells.parquet", "0")
    assert run.config().licence.weights == "MIT"
    with pytest.raises(RunError, match="another configuration"):
        run.start(run_config(**OURS, seed=8), tmp_path / "cells.parquet", "0")
