"""A run's configuration: frozen, checked, read from TOML; unknown keys are errors."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.core.spec import Preprocessing, Resample
from training.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Accelerator = Literal["auto", "cpu", "gpu"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StartConfig(_Table):
    """The weights to start from.

    Attributes:
        kind: ``random``; ``pretrained`` asks timm for the backbone's ImageNet weights; ``file``
            reads a whole network or its backbone; ``grown`` reads the weights of a smaller
            EfficientNet and grows them (`training.zoo.grow`).
        file: A safetensors file, for ``file`` and, unless timm is to fetch it, ``grown``.
        relative: timm's name of the smaller network, for ``grown``.
        licence: Of the start weights, with attribution; goes into the manifest.
    """

    kind: Literal["random", "pretrained", "file", "grown"] = "random"
    file: Path | None = None
    relative: str | None = None
    licence: str = "none: random initialisation"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "file" and self.file is None:
            raise ValueError("kind 'file' needs the key 'file'")
        if self.kind == "grown" and self.relative is None:
            raise ValueError("kind 'grown' needs the key 'relative'")
        return self


class ModelConfig(_Table):
    """The network.

    Attributes:
        network: A name of `training.zoo`.
        drop_path: Stochastic depth in the last block, 0..1.
        dropout: In the head, 0..1.
        penalty: Factor of the head's own penalties; 1 is the notebook's.
        start: The weights to start from.
    """

    network: str
    drop_path: Share = 0.0
    dropout: Share = 0.45
    penalty: Annotated[float, Field(ge=0)] = 1.0
    start: StartConfig = StartConfig()


class SplitConfig(_Table):
    """Who is trained on, chosen by and tested on.

    Attributes:
        kind: ``fold`` tests on one official fold; ``subject`` draws test subjects at random.
            Both keep every subject group on one side.
        test_fold: For ``fold``.
        parts: The data is cut into this many parts by subject group; one part (of the training
            folds, for ``fold``) validates, and for ``subject`` another one tests.
        seed: Of the cut.
    """

    kind: Literal["fold", "subject"]
    test_fold: Annotated[int, Field(ge=0)] = 1
    parts: Annotated[int, Field(ge=3, le=20)] = 6
    seed: Annotated[int, Field(ge=0)] = 0


class InputConfig(_Table):
    """From file to the network's input; the fields are those of `app.core.spec.Preprocessing`."""

    crop_px: int | None
    size_px: int
    resample: Resample
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def spec(self) -> Preprocessing:
        """Return the same as the manifest's type, which checks the ranges."""
        return Preprocessing(**self.model_dump())


class AugmentConfig(_Table):
    """Random changes of a training picture; 0 switches one off.

    Attributes:
        flip: Probability of each of the two mirrorings.
        rotate_deg: Largest rotation to either side, in degrees.
        shift: Largest shift, as a share of the side.
        zoom: Largest relative change of size. A cell's size is a cue: keep it small.
        stain: Standard deviation of the factor on each stain's optical density.
    """

    flip: Share = 0.5
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stain: Annotated[float, Field(ge=0, lt=1)] = 0.0


class OptimiserConfig(_Table):
    """AdamW with a linear warm-up and a cosine to zero, and two learning rates.

    Attributes:
        backbone_lr: Peak learning rate of the backbone.
        head_lr: Peak learning rate of the head.
        weight_decay: Decoupled, on weights of two or more dimensions.
        warmup: Share of all steps.
        clip_norm: Largest norm of the whole gradient.
        average_decay: Of the exponential moving average of the weights; 0 switches it off.
    """

    backbone_lr: Rate
    head_lr: Rate
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Share = 0.1
    clip_norm: Annotated[float, Field(gt=0)] = 5.0
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99


class FitConfig(_Table):
    """How long and on what.

    Attributes:
        epochs: Passes over as many cells as the training part has.
        batch_size: Cells a step.
        balance: ``subject`` draws, within a class, cells with the inverse square root of their
            subject's cell count; ``none`` shuffles.
        label_smoothing: 0..1.
        freeze_norm: Keep the backbone's batch-norm statistics as they started.
        precision: Lightning's name, such as ``32-true`` or ``bf16-mixed``.
        accelerator: Lightning's name; ``auto`` takes a GPU where there is one.
        patience: Epochs without a smaller validation loss before the run stops.
    """

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 32
    balance: Literal["none", "subject"] = "subject"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    freeze_norm: bool = False
    precision: Precision = "32-true"
    accelerator: Accelerator = "auto"
    patience: Annotated[int, Field(ge=1)] = 5


class DistilConfig(_Table):
    """How a grown network is taught the features of its relative.

    Attributes:
        steps: Batches.
        batch_size: Cells a step.
        crop_px: Side of a random square of the input; smaller is faster, and as good for
            features, which are local.
        learning_rate: Of AdamW, after a short warm-up, with a cosine to zero.
        morph: Share of the steps over which ReLU6 becomes the network's own SiLU; it must end before they do.
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


class DataConfig(_Table):
    """What every kind of run has.

    Attributes:
        name: Of the model that the run makes; a folder's name.
        seed: Of everything random in the run, 0 included.
        model: The network.
        split: Its parts.
        input: From file to input.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*[a-z0-9]$")]
    seed: Annotated[int, Field(ge=0)]
    model: ModelConfig
    split: SplitConfig
    input: InputConfig


class FeatureRunConfig(DataConfig):
    """A run that teaches features."""

    distil: DistilConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.start.kind != "grown":
            raise ValueError("features are taught to a grown network: model.start.kind must be 'grown'")
        if self.distil.crop_px > self.input.size_px:
            raise ValueError("distil.crop_px is larger than input.size_px")
        return self


class RunConfig(DataConfig):
    """A run that trains a classifier."""

    augment: AugmentConfig = AugmentConfig()
    optimiser: OptimiserConfig
    fit: FitConfig


AnyConfig = TypeVar("AnyConfig", bound=DataConfig)


def load_config(path: Path, kind: type[AnyConfig], start_file: Path | None = None) -> AnyConfig:
    """Read a run's configuration.

    Paths in it are relative to the working folder.

    Args:
        path: A TOML file.
        kind: `RunConfig` or `FeatureRunConfig`.
        start_file: Start weights to use instead of ``model.start.file``.

    Raises:
        ConfigError: Missing, no TOML, a key unknown or missing, or a value out of range.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        if start_file is not None:
            tables.setdefault("model", {}).setdefault("start", {})["file"] = str(start_file)
        return kind.model_validate(tables)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {problems}") from error
