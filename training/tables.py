"""The tables of a configuration that say what is read, split, shown and built."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.errors import ManifestError
from app.core.parts import Denoise, Preprocessing, Resample, Windows
from training.origin import NOT_STATED

Share = Annotated[float, Field(ge=0, le=1)]
# Hard swish (Howard et al. 2019, arXiv:1905.02244) is SiLU in straight lines: with 8 bits it costs next to nothing.
Activation = Literal["silu", "hard-swish"]
_Amount = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    """A table of a configuration: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StartConfig(Table):
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


class LicenceConfig(Table):
    """What manifest and card say beside the start weights' licence.

    Attributes:
        weights: Licence of the weights that the run makes.
        cells: Licence of cells of one's own, with attribution; C-NMC has one.
    """

    weights: str = NOT_STATED
    cells: str = "cells of one's own, licence not stated"


class ModelConfig(Table):
    """The network.

    Attributes:
        network: A name of `training.zoo`.
        backbone: timm's name of another backbone of the same kind; None takes the network's own.
        activation: Of an EfficientNet; its own is SiLU.
        freeze: Keep the whole backbone as it starts, and train the head alone.
        quantised: Round the convolutions to 8 bits before the head is taught (`training.zoo.quantised`); for a probe.
        drop_path: Stochastic depth in the last block, 0..1.
        dropout: In the head, 0..1; None takes the head's own.
        penalty: Factor of the head's own penalties; 1 is the notebook's.
        start: The weights to start from.
    """

    network: str
    backbone: str | None = None
    activation: Activation = "silu"
    freeze: bool = False
    quantised: bool = False
    drop_path: Share = 0.0
    dropout: Share | None = None
    penalty: Annotated[float, Field(ge=0)] = 1.0
    start: StartConfig = StartConfig()


class SplitConfig(Table):
    """Who is trained on, chosen by and tested on.

    Attributes:
        kind: ``all`` has no test part; ``fold`` tests on one official fold; ``preliminary`` on the
            preliminary test set; ``subject`` draws test subjects at random. These keep every subject group on one side.
            ``image`` draws 70 % of the pictures, and halves the rest: it leaks.
        folds: The official folds that are used; None uses all that the index has.
        test_fold: For ``fold``.
        parts: The subject groups are cut into this many parts, stratified by class; one part (of
            the training cells, for ``fold`` and ``preliminary``) validates, and for ``subject``
            another one tests.
        part: For ``subject``, the part that tests, from 0; the next one validates. All parts in
            turn are a k-fold cross-validation.
        seed: Of the cut.
    """

    kind: Literal["all", "fold", "subject", "preliminary", "image"]
    folds: tuple[int, ...] | None = None
    test_fold: Annotated[int, Field(ge=0)] = 1
    parts: Annotated[int, Field(ge=3, le=20)] = 6
    part: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if self.part >= self.parts:
            raise ValueError(f"part is 0..{self.parts - 1}, not {self.part}")
        return self


class WindowsConfig(Table):
    """Which part of the input the network looks at; the fields are those of `app.core.parts.Windows`."""

    sides_px: tuple[int, ...]
    step_px: int


class InputConfig(Table):
    """From file to the network's input; the fields are those of `app.core.spec.Preprocessing`."""

    crop_px: int | None = None
    size_px: int
    resample: Resample
    denoise: Denoise = "none"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    windows: WindowsConfig | None = None

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        try:
            self.spec()
        except ManifestError as error:
            raise ValueError(str(error)) from error
        return self

    def spec(self) -> Preprocessing:
        """Return the same as the manifest's type, which checks the ranges."""
        windows = None if self.windows is None else Windows(**self.windows.model_dump())
        return Preprocessing(**self.model_dump() | {"windows": windows})


class AugmentConfig(Table):
    """Random changes of a training picture; 0 switches one off.

    Attributes:
        flip: Probability of each mirroring.
        flip_axes: Mirror left to right only, or top to bottom too.
        rotate_deg: Largest rotation to either side, in degrees.
        shift: Largest shift, as a share of the side.
        shear_deg: Largest shear to either side, in degrees.
        zoom: Largest relative change of size. A cell's size is a cue: keep it small.
        brightness: Largest relative change.
        contrast: Largest relative change.
        saturation: Largest relative change.
        hue: Largest change, as a share of the colour circle.
        stain: Standard deviation of the factor on each stain's optical density.
        blur_px: Largest standard deviation of a Gaussian blur, in pixels of the input.
        noise: Standard deviation of Gaussian noise, as a share of the range.
    """

    flip: Share = 0.5
    flip_axes: Literal["both", "horizontal"] = "both"
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: _Amount = 0.0
    shear_deg: Annotated[float, Field(ge=0, le=45)] = 0.0
    zoom: _Amount = 0.0
    brightness: _Amount = 0.0
    contrast: _Amount = 0.0
    saturation: _Amount = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    stain: _Amount = 0.0
    blur_px: Annotated[float, Field(ge=0, le=10)] = 0.0
    noise: _Amount = 0.0

    @property
    def flips_only(self) -> bool:
        """Whether nothing but mirroring is asked for."""
        return not any(value for name, value in self.model_dump().items() if name not in {"flip", "flip_axes"})
