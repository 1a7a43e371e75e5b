"""Small data sets and configurations for the tests of the training."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config import FeatureRunConfig, RunConfig
from training.data.drawn import write_dataset
from training.data.index import INDEX_FILE, build_index, write_index
from training.novelty.score import Novelty
from training.novelty.stages import StageMeans
from training.zoo import Classifier

INPUT = {"crop_px": 320, "size_px": 40, "resample": "bilinear", "mean": [127.0] * 3, "std": [128.0] * 3}
SPLIT = {"kind": "subject", "parts": 3}


def run_config(**changes: object) -> RunConfig:
    """A configuration that trains in seconds; `changes` replace top-level tables."""
    tables = {
        "name": "tiny",
        "seed": 7,
        "model": {"network": "efficientnet-b3"},
        "split": SPLIT,
        "input": INPUT,
        "augment": {"flip": 0.5, "rotate_deg": 180, "shift": 0.05, "zoom": 0.05, "stain": 0.05},
        "optimiser": {"backbone_lr": 1e-4, "head_lr": 1e-3, "average_decay": 0.9},
        "fit": {"epochs": 2, "batch_size": 4, "freeze_norm": True, "accelerator": "cpu"},
    }
    return RunConfig.model_validate(tables | changes)


def feature_config(relative: Path) -> FeatureRunConfig:
    """A configuration that teaches features in seconds."""
    start = {"kind": "grown", "relative": "tf_efficientnet_lite2", "file": str(relative)}
    return FeatureRunConfig.model_validate(
        {
            "name": "tiny-features",
            "seed": 0,
            "model": {"network": "efficientnet-b3", "start": start},
            "split": SPLIT,
            "input": INPUT,
            "distil": {"steps": 3, "batch_size": 4, "crop_px": 32, "accelerator": "cpu"},
        }
    )


def write_toml(config: RunConfig, file: Path) -> Path:
    """Write a configuration with enough TOML for its tables: JSON values, tables by their path."""
    lines, tables = [], []
    for key, value in config.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, dict):
            nested = {name: inner for name, inner in value.items() if isinstance(inner, dict)}
            tables += [f"[{key}]", *(f"{n} = {json.dumps(v)}" for n, v in value.items() if n not in nested)]
            for name, inner in nested.items():
                tables += [f"[{key}.{name}]", *(f"{n} = {json.dumps(v)}" for n, v in inner.items())]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    file.write_text("\n".join(lines + tables))
    return file


def some_novelty(network: Classifier, size_px: int) -> Novelty:
    """A score for a network, fitted on a few pictures of noise."""
    watched = copy.deepcopy(network).eval()
    stages = StageMeans(watched.backbone)
    with torch.no_grad():
        watched(torch.randn(8, 3, size_px, size_px, generator=torch.Generator().manual_seed(0)))
    return Novelty.fit(stages.take().numpy(), np.full(8, 1 / 8))


@pytest.fixture(scope="session")
def drawn_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of drawn cells: 2 folds, 3 subjects of each class in each, 2 cells of each."""
    data = write_dataset(tmp_path_factory.mktemp("drawn"), folds=2, subjects=3, cells=2)
    file = data / INDEX_FILE
    write_index(build_index(data, file), file)
    return file


@pytest.fixture(scope="session")
def real_data(real_cells: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real cells in the layout of a download."""
    root = tmp_path_factory.mktemp("real")
    for path in real_cells:
        link = root / path.parent.parent.name / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return root
