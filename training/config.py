"""A run's configuration: frozen, checked, read from TOML; unknown keys are errors."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from training.errors import ConfigError
from training.origin import NOT_STATED, origin_of
from training.tables import AugmentConfig, InputConfig, LicenceConfig, ModelConfig, Share, SplitConfig, Table

Rate = Annotated[float, Field(gt=0, le=1)]
_NotNegative = Annotated[float, Field(ge=0)]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Accelerator = Literal["auto", "cpu", "gpu"]


class OptimiserConfig(Table):
    """An optimiser with two learning rates, and how they change.

    Attributes:
        name: Of the optimiser.
        backbone_lr: Largest learning rate of the backbone.
        head_lr: Largest learning rate of the head.
        eps: Added to the denominator; None takes PyTorch's 1e-8, Keras has 1e-7.
        momentum: Of SGD (with Nesterov's step, where it is not 0).
        weight_decay: On weights of two or more dimensions; decoupled for AdamW.
        schedule: ``cosine`` warms up in a line and falls to zero; ``plateau`` falls where the
            validation loss does not; ``notebook`` is the B3 notebook's (`training.notebook`);
            ``constant`` stays.
        warmup: Share of all steps, for ``cosine``.
        factor: Of a fall, for ``plateau`` and ``notebook``.
        plateau_patience: Epochs without a smaller validation loss before a fall, for ``plateau``.
        clip_norm: Largest norm of the whole gradient; 0 does not clip.
        average_decay: Of the exponential moving average of the weights; 0 switches it off.
    """

    name: Literal["adamw", "adam", "adamax", "sgd"] = "adamw"
    backbone_lr: Rate
    head_lr: Rate
    eps: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: _NotNegative = 0.01
    schedule: Literal["cosine", "plateau", "notebook", "constant"] = "cosine"
    warmup: Share = 0.1
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    plateau_patience: Annotated[int, Field(ge=0)] = 2
    clip_norm: _NotNegative = 5.0
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class LossConfig(Table):
    """What is made small; label smoothing is in `FitConfig`.

    Attributes:
        name: ``cross-entropy``; ``focal`` (Lin et al. 2017, arXiv:1708.02002); ``symmetric``
            cross-entropy for noisy labels (Wang et al. 2019, arXiv:1908.06112).
        class_weights: ``balanced`` weighs classes by the inverse of their count.
        gamma: Of the focal loss.
        alpha: Factor of the cross-entropy in the symmetric loss.
        beta: Factor of the reverse cross-entropy in the symmetric loss.
    """

    name: Literal["cross-entropy", "focal", "symmetric"] = "cross-entropy"
    class_weights: Literal["none", "balanced"] = "none"
    gamma: _NotNegative = 2.0
    alpha: _NotNegative = 0.1
    beta: _NotNegative = 1.0


class FitConfig(Table):
    """How long and on what.

    Attributes:
        epochs: Passes over as many cells as the training part has.
        batch_size: Cells a step, on each device.
        balance: ``subject`` draws, within a class, cells with the inverse square root of their
            subject's cell count; ``none`` shuffles.
        label_smoothing: 0..1.
        freeze_norm: Keep the backbone's batch-norm statistics as they started.
        precision: Lightning's name, such as ``32-true`` or ``bf16-mixed``, of the training; validation is in float32.
        accelerator: Lightning's name; ``auto`` takes a GPU where there is one.
        devices: Number of GPUs, or of processes on the CPU, over all machines; more than one train data-parallel.
        patience: Epochs without a smaller validation loss before the run stops; 0 never stops.
        keep: Whether the ``best`` epoch's weights are the result, or the ``last`` one's.
    """

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 32
    balance: Literal["none", "subject"] = "subject"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    freeze_norm: bool = False
    precision: Precision = "32-true"
    accelerator: Accelerator = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=0)] = 5
    keep: Literal["best", "last"] = "best"


class DistilConfig(Table):
    """How a grown network is taught the features of its relative.

    Attributes:
        steps: Batches.
        batch_size: Cells a step.
        crop_px: Side of a random square of the input; smaller is faster, and as good for
            features, which are local.
        learning_rate: Of AdamW, after a short warm-up, with a cosine to zero.
        morph: Share of the steps over which ReLU6 becomes the network's own activation; it must end before they do.
        precision: Lightning's name.
        accelerator: Lightning's name.
    """

    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 32
    crop_px: Annotated[int, Field(ge=32)]
    learning_rate: Rate = 5e-4
    morph: Annotated[float, Field(gt=0, le=0.9)] = 0.5
    precision: Precision = "32-true"
    accelerator: Accelerator = "auto"


class DataConfig(Table):
    """What every kind of run has.

    Attributes:
        name: Of the model that the run makes; a folder's name.
        seed: Of everything random in the run, 0 included.
        model: The network.
        split: Its parts.
        input: From file to input.
        licence: Of what is made, and of cells of one's own.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*[a-z0-9]$")]
    seed: Annotated[int, Field(ge=0)]
    model: ModelConfig
    split: SplitConfig
    input: InputConfig
    licence: LicenceConfig = LicenceConfig()


class ProbeConfig(Table):
    """How the last layer of a frozen network is solved.

    Attributes:
        strengths: Inverse penalties to choose from, by cross-validation over subjects in
            `SplitConfig.parts` parts.
    """

    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (5e-4, 1e-3, 2e-3, 5e-3)


def _refuse_windows(given: InputConfig) -> None:
    """Training batches are pictures of one size."""
    if given.windows is not None:
        raise ValueError("input.windows is for a probe, which looks at each picture once")


class FeatureRunConfig(DataConfig):
    """A run that teaches features."""

    distil: DistilConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.start.kind != "grown":
            raise ValueError("features are taught to a grown network: model.start.kind must be 'grown'")
        if self.distil.crop_px > self.input.size_px:
            raise ValueError("distil.crop_px is larger than input.size_px")
        _refuse_windows(self.input)
        return self


class RunConfig(DataConfig):
    """A run that trains a classifier."""

    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig
    loss: LossConfig = LossConfig()
    fit: FitConfig

    @model_validator(mode="after")
    def _not_quantised(self) -> Self:
        if self.model.quantised:
            raise ValueError("model.quantised is for a probe; a fitted network gets 8 bits with 'export --precision'")
        _refuse_windows(self.input)
        return self


class ProbeRunConfig(DataConfig):
    """A run that solves the last layer of a frozen network."""

    augment: AugmentConfig = AugmentConfig()
    probe: ProbeConfig

    @model_validator(mode="after")
    def _frozen(self) -> Self:
        if not (self.model.freeze and self.augment.flips_only and self.model.network.endswith("-stages")):
            raise ValueError(
                "a probe wants model.freeze = true, a network of stages (efficientnet-b3-stages, "
                "efficientnet-lite0-stages), and no augmentation but mirroring"
            )
        return self


AnyConfig = TypeVar("AnyConfig", bound=DataConfig)

# In place of pydantic's own.
_WORDS: Final = {"extra_forbidden": "there is no such key", "missing": "this key is missing"}


def load_config(
    path: Path,
    kind: type[AnyConfig],
    start_file: Path | None = None,
    split: str | None = None,
    changes: Sequence[str] = (),
) -> AnyConfig:
    """Read a run's configuration.

    Paths in it are relative to the working folder. With ``extends = "other.toml"`` it holds only
    what differs from another file beside it.

    Args:
        path: A TOML file.
        kind: `RunConfig` or `FeatureRunConfig`.
        start_file: Start weights to use instead of ``model.start.file``; a start that names no
            file becomes one of kind ``file``, whose licence is that of the run or the model that it is of
            (`training.origin`); that of any other file can only be given by `changes`.
        split: Another split in short: ``image``, ``preliminary``, ``fold:<test fold>``, ``subject:<part>``.
        changes: Other keys to replace, each as ``table.key=value`` with a TOML value.

    Raises:
        ConfigError: Missing, no TOML, a key unknown or missing, or a value out of range.
    """
    try:
        tables = _read(path)
        _merge(tables, _start(tables, start_file))
        for change in [*_split(split), *changes]:
            _replace(tables, change)
        return kind.model_validate(tables)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {_WORDS.get(e['type'], e['msg'])}" for e in error.errors())
        raise ConfigError(f"{path}: {'; '.join(problems)}") from error


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file's tables over those of the file that it extends."""
    if path in above:
        raise ConfigError(f"{path}: it extends itself")
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    base = tables.pop("extends", None)
    if base is None:
        return tables
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends names a file, not {base!r}")
    merged = _read(path.parent / base, (*above, path))
    # Other start weights are another start: nothing of the base's remains.
    if "start" in tables.get("model", {}) and "kind" in tables["model"]["start"]:
        merged.get("model", {}).pop("start", None)
    _merge(merged, tables)
    return merged


def _start(tables: dict[str, Any], file: Path | None) -> dict[str, Any]:
    """What changes where another start file is named."""
    if file is None:
        return {}
    kind = tables.get("model", {}).get("start", {}).get("kind", "random")
    if kind == "grown":
        return {"model": {"start": {"file": str(file)}}}
    origin = origin_of(file)
    changed: dict[str, Any] = {"model": {"start": {"kind": "file", "file": str(file), "licence": origin.licence}}}
    # What is made of weights without a licence has none, whatever the configuration says of others.
    if origin.weights == NOT_STATED:
        changed["licence"] = {"weights": origin.weights}
    return changed


def _split(words: str | None) -> list[str]:
    """Spell a split's short form out."""
    if words is None:
        return []
    kind, _, number = words.partition(":")
    key = {"fold": "test_fold", "subject": "part"}.get(kind)
    if kind not in {"all", "fold", "subject", "image", "preliminary"} or (number and not (key and number.isdecimal())):
        raise ConfigError(f"--split is all, image, preliminary, fold:<number> or subject:<part>, not {words!r}")
    return [f"split.kind='{kind}'", *([f"split.{key}={number}"] if number else [])]


def _replace(tables: dict[str, Any], change: str) -> None:
    """Set one key, given as ``table.key=value``."""
    try:
        parsed = tomllib.loads(change)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"expected table.key=value with a TOML value, not {change!r}") from error
    _merge(tables, parsed)


def _merge(tables: dict[str, Any], news: dict[str, Any]) -> None:
    for key, value in news.items():
        if isinstance(value, dict) and isinstance(tables.get(key), dict):
            _merge(tables[key], value)
        else:
            tables[key] = value
