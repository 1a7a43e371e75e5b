"""The notebooks' systems beside their own runs: each figure in its own column, and none made up."""

from pathlib import Path
from typing import Any

import pytest

from training.config import RunConfig, load_config
from training.published import SYSTEMS, beside_published

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def report(model: str, split: str, validation: float, test: float) -> dict[str, Any]:
    return {
        "model": model,
        "split": {"name": split, "leaks": split.startswith("LEAKING")},
        "validation": {"accuracy": validation},
        "test": {"accuracy": test},
    }


def test_each_run_stands_in_the_column_of_its_split() -> None:
    head, lines = beside_published(
        [
            report("notebook-baseline", "LEAKING by image: 70/15/15, seed 123", 0.81, 0.82),
            report("notebook-baseline", "subject-disjoint: fold-1-as-test, validation 1/3, seed 123", 0.83, 0.84),
            report("notebook-baseline", "subject-disjoint: fold-1-as-test, validation 1/3, seed 7", 0.85, 0.86),
            report("efficientnet-b3", "subject-disjoint: fold-0-as-test, validation 1/3, seed 0", 0.87, 0.88),
        ]
    )
    line = dict(zip(head, next(line for line in lines if "EfficientNet-B0, frozen" in line[0]), strict=True))
    assert line["published"] == "0.8649 (validation)"
    assert line["by image, validation"] == "0.8100"
    assert line["by image, test"] == "0.8200"
    assert line["fold 0 to 1"] == "0.8400, 0.8600"
    assert line["fold 1 to 0"] == "not run"


def test_a_run_that_was_ended_by_hand_is_not_set_beside_whole_ones_unsaid() -> None:
    cut = report("notebook-attention", "subject-disjoint: fold-1-as-test, validation 1/3, seed 123", 0.7, 0.8)
    head, lines = beside_published([cut | {"epochs": 23, "planned_epochs": 100}])
    line = dict(zip(head, next(line for line in lines if "one token" in line[0]), strict=True))
    assert line["fold 0 to 1"] == "0.8000 (ended after 23 of 100 epochs)"


def test_nothing_is_said_of_what_was_not_run() -> None:
    _, lines = beside_published([])
    assert len(lines) == len(SYSTEMS)
    assert {cell for line in lines for cell in line[2:]} == {"not run", "no weights"}


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.config)
def test_each_system_is_a_configuration_here_that_splits_as_the_notebook_did(system: Any) -> None:
    config = load_config(CONFIGS / f"{system.config}.toml", RunConfig)
    assert config.name == system.config
    if system.accuracy is not None:
        assert config.split.kind == "image"
