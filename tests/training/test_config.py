"""Configurations: the shipped ones load, wrong ones are refused with the name of what is wrong."""

import tomllib
from pathlib import Path

import pytest

from training.config import DataConfig, FeatureRunConfig, ProbeRunConfig, RunConfig, load_config
from training.errors import ConfigError
from training.zoo import least_px, names

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))


def kind_of(path: Path) -> type[DataConfig]:
    tables = tomllib.loads(path.read_text())
    if "distil" in tables or "probe" in tables:
        return FeatureRunConfig if "distil" in tables else ProbeRunConfig
    return kind_of(path.parent / tables["extends"]) if "extends" in tables else RunConfig


def test_there_are_configurations() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load_and_are_named_like_their_file(path: Path) -> None:
    config = load_config(path, kind_of(path))
    assert config.name == path.stem
    assert config.input.spec().size_px == config.input.size_px


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem in {"efficientnet-b3-fine-tuned", "efficientnet-b3-features"}]
)
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_name_networks_that_there_are(path: Path) -> None:
    config = load_config(path, kind_of(path))
    assert config.model.network in names()
    assert config.input.size_px >= least_px(config.model.network)


@pytest.mark.parametrize(
    ("words", "kind", "number"),
    [
        ("all", "all", 1),
        ("image", "image", 1),
        ("fold:0", "fold", 0),
        ("subject:2", "subject", 2),
        ("preliminary", "preliminary", 1),
    ],
)
def test_the_split_can_be_named_from_outside(words: str, kind: str, number: int) -> None:
    split = load_config(CONFIGS[0].parent / "notebook-attention.toml", RunConfig, split=words).split
    assert split.kind == kind
    assert number == (split.part if kind == "subject" else split.test_fold)


@pytest.mark.parametrize("words", ["folds", "fold:x", "image:1", ""])
def test_an_unknown_split_is_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="--split is"):
        load_config(CONFIGS[0].parent / "notebook-attention.toml", RunConfig, split=words)


def test_single_values_can_be_changed_from_outside() -> None:
    path = CONFIGS[0].parent / "notebook-attention.toml"
    changed = load_config(path, RunConfig, changes=["fit.epochs=3", "input.mean=[0,0,0]", "seed=0"])
    assert (changed.fit.epochs, changed.input.mean, changed.seed) == (3, (0.0, 0.0, 0.0), 0)
    with pytest.raises(ConfigError, match=r"expected table\.key=value"):
        load_config(path, RunConfig, changes=["fit.epochs 3"])
    with pytest.raises(ConfigError, match=r"fit\.epoch: "):
        load_config(path, RunConfig, changes=["fit.epoch=3"])


def test_a_configuration_can_extend_another(tmp_path: Path) -> None:
    path = CONFIGS[0].parent / "notebook-attention-promised.toml"
    config, base = load_config(path, RunConfig), load_config(path.parent / "notebook-attention.toml", RunConfig)
    assert (config.augment.shear_deg, config.augment.flip, config.fit.epochs) == (15, base.augment.flip, 60)
    assert config.optimiser == base.optimiser
    (tmp_path / "own.toml").write_text('extends = "own.toml"')
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(tmp_path / "own.toml", RunConfig)
    (tmp_path / "lost.toml").write_text('extends = "nowhere.toml"')
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path / "lost.toml", RunConfig)


def test_a_file_named_from_outside_brings_no_licence_along() -> None:
    path = CONFIGS[0].parent / "notebook-attention.toml"
    start = load_config(path, RunConfig, Path("own.safetensors")).model.start
    assert (start.kind, start.file, start.licence[:10]) == ("file", Path("own.safetensors"), "not stated")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml", RunConfig)


def test_start_weights_can_be_named_from_outside() -> None:
    path = next(path for path in CONFIGS if kind_of(path) is FeatureRunConfig)
    config = load_config(path, FeatureRunConfig, Path("elsewhere.safetensors"))
    assert config.model.start.file == Path("elsewhere.safetensors")
