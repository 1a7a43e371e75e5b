"""Configurations: the shipped ones load, wrong ones are refused with the name of what is wrong."""

from pathlib import Path

import pytest

from training.config import DataConfig, FeatureRunConfig, RunConfig, load_config
from training.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))


def kind_of(path: Path) -> type[DataConfig]:
    return FeatureRunConfig if "[distil]" in path.read_text() else RunConfig


def test_there_are_configurations() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_are_named_like_their_file(path: Path) -> None:
    config = load_config(path, kind_of(path))
    assert config.name == path.stem
    assert config.input.spec().size_px == config.input.size_px


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed = 0", "sede = 0", "sede"),
        ("seed = 0", "seed = -1", "seed"),
        ("[split]", "[split]\nfolds = 9", "split.folds"),
        ('kind = "fold"', 'kind = "by-image"', "split.kind"),
        ("name =", "name", "not TOML"),
    ],
)
def test_wrong_ones_are_refused(path: Path, old: str, new: str, expected: str, tmp_path: Path) -> None:
    text = path.read_text()
    assert old in text
    broken = tmp_path / "broken.toml"
    broken.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=expected):
        load_config(broken, kind_of(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml", RunConfig)


def test_start_weights_can_be_named_from_outside() -> None:
    path = next(path for path in CONFIGS if kind_of(path) is FeatureRunConfig)
    config = load_config(path, FeatureRunConfig, Path("elsewhere.safetensors"))
    assert config.model.start.file == Path("elsewhere.safetensors")
