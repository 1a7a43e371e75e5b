"""The parts of a model manifest, each checked as it is made, and how they are read from JSON."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from app.core.errors import ManifestError

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Denoise = Literal["none", "median-3", "median-5"]

SHA256: Final = re.compile(r"[0-9a-f]{64}")


def require(condition: bool, message: str) -> None:
    """Raise a `ManifestError` with a message unless a condition holds."""
    if not condition:
        raise ManifestError(message)


def finite(*values: float) -> bool:
    """Tell whether all values are finite numbers."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Squares, smaller than the model's input, that the model may look at alone (`app.core.windows`).

    Attributes:
        sides_px: Their sides, rising, in pixels of the input.
        step_px: They begin at multiples of it; the sides are multiples too.
    """

    sides_px: tuple[int, ...]
    step_px: int

    def __post_init__(self) -> None:
        numbers = (*self.sides_px, self.step_px)
        require(
            len(numbers) > 1 and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers),
            f"windows: positive integers, not {self.sides_px!r} and {self.step_px!r}",
        )
        require(
            list(self.sides_px) == sorted(set(self.sides_px)) and not any(s % self.step_px for s in self.sides_px),
            f"windows.sides_px: rising multiples of {self.step_px}, not {self.sides_px!r}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a decoded RGB picture becomes the model's input.

    Attributes:
        crop_px: Side of the centred square that is kept, in pixels of the picture; None keeps
            the whole picture.
        size_px: Side of the model's input, in pixels.
        resample: Pillow's name of the resize filter.
        mean: Per RGB channel, in units of 0..255; subtracted inside the graph.
        std: Per RGB channel, in units of 0..255; divided by inside the graph.
        denoise: A median filter of 3 or 5 px on the cropped picture, before it is resized; or none.
        windows: What of the input the model looks at, where that is not all of it; None for all.
    """

    crop_px: int | None
    size_px: int
    resample: Resample
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    denoise: Denoise = "none"
    windows: Windows | None = None

    @property
    def sides_px(self) -> tuple[int, ...]:
        """The sides of what the model looks at, rising; the last is the whole input."""
        return (*(self.windows.sides_px if self.windows else ()), self.size_px)

    def __post_init__(self) -> None:
        crop = self.crop_px
        require(
            crop is None or (isinstance(crop, int) and 16 <= crop <= 4096), f"crop_px: null or 16..4096, not {crop!r}"
        )
        require(
            isinstance(self.size_px, int) and 16 <= self.size_px <= 1024, f"size_px: 16..1024, not {self.size_px!r}"
        )
        require(self.resample in get_args(Resample), f"resample: one of {get_args(Resample)}, not {self.resample!r}")
        require(self.denoise in get_args(Denoise), f"denoise: one of {get_args(Denoise)}, not {self.denoise!r}")
        require(len(self.mean) == 3 and finite(*self.mean), f"mean: 3 finite numbers, not {self.mean!r}")
        require(
            len(self.std) == 3 and finite(*self.std) and min(self.std) > 0,
            f"std: 3 positive numbers, not {self.std!r}",
        )
        if self.windows is not None:
            step, sides = self.windows.step_px, self.windows.sides_px
            require(self.size_px % step == 0, f"windows.step_px: divides {self.size_px}, not {step}")
            require(sides[-1] < self.size_px, f"windows.sides_px: less than {self.size_px}, not {sides}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewBand:
    """Where a person should look again: ``low <= P(ALL) <= high``, after temperature scaling."""

    low: float
    high: float

    def __post_init__(self) -> None:
        require(
            finite(self.low, self.high) and 0 <= self.low <= self.high <= 1,
            f"review: 0 <= low <= high <= 1, not {self.low!r} and {self.high!r}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """When a picture counts as no cell of the kind that the model was measured on.

    Attributes:
        method: What the graph's output ``novelty`` is, in words.
        threshold: Where it is higher, a person should look, whatever the label.
    """

    method: str
    threshold: float

    def __post_init__(self) -> None:
        require(isinstance(self.method, str) and bool(self.method), "novelty.method: a text")
        require(finite(self.threshold) and self.threshold > 0, "novelty.threshold: a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """One picture and the model's answer to it, stored at export and reproduced before serving.

    Attributes:
        image_png: The picture, a PNG in base64.
        input_sha256: Hash of the preprocessed bytes: decoding and resizing must agree exactly.
        logits: The model's output, one number per label.
        atol: Largest absolute difference of a logit that passes.
    """

    image_png: str
    input_sha256: str
    logits: tuple[float, ...]
    atol: float

    def __post_init__(self) -> None:
        require(bool(SHA256.fullmatch(self.input_sha256)), "golden.input_sha256: 64 hexadecimal digits")
        require(finite(*self.logits), "golden.logits: finite numbers")
        require(finite(self.atol) and self.atol > 0, "golden.atol: a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """The same model in another precision, such as ``fp16`` or ``int8``.

    Rounding moves what a network sees, so a variant may have been calibrated by itself.

    Attributes:
        file: Its graph, beside ``model.onnx`` and with the same inputs and outputs.
        logits: Its own answer to the golden picture, one number per label.
        atol: Largest absolute difference of a logit that passes.
        figures: Measured on the same cells as the report's, such as ``weighted_f1``.
        temperature: Its own; None where the model's holds.
        review: Its own band; None where the model's holds.
        novelty: Its own threshold; None where the model's holds.
    """

    file: str
    logits: tuple[float, ...]
    atol: float
    figures: dict[str, float]
    temperature: float | None = None
    review: ReviewBand | None = None
    novelty: Novelty | None = None

    def __post_init__(self) -> None:
        own = self.temperature
        require(own is None or (finite(own) and own > 0), "variants: temperature: null or a positive number")
        require(finite(*self.logits), "variants: logits: finite numbers")
        require(finite(self.atol) and self.atol > 0, "variants: atol: a positive number")
        require(finite(*self.figures.values()), "variants: figures: finite numbers")


def fields_of(cls: type[Any], raw: object, where: str) -> dict[str, Any]:
    """Check that `raw` is an object with just the fields of dataclass `cls`."""
    if not isinstance(raw, dict):
        raise ManifestError(f"{where}: expected an object, not {type(raw).__name__}")
    fields = {field.name for field in dataclasses.fields(cls)}
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    require(not (raw.keys() - fields), f"{where}: unknown keys {sorted(raw.keys() - fields)}")
    require(not (required - raw.keys()), f"{where}: missing keys {sorted(required - raw.keys())}")
    return raw


def preprocessing_of(raw: object) -> Preprocessing:
    """Read `Preprocessing` from JSON."""
    values = fields_of(Preprocessing, raw, "preprocessing")
    windows = values.get("windows")
    return Preprocessing(
        **values
        | {
            "mean": tuple(values["mean"]),
            "std": tuple(values["std"]),
            "windows": None if windows is None else windows_of(windows),
        }
    )


def windows_of(raw: object) -> Windows:
    """Read `Windows` from JSON."""
    values = fields_of(Windows, raw, "windows")
    return Windows(**values | {"sides_px": tuple(values["sides_px"])})


def golden_of(raw: object) -> Golden:
    """Read a `Golden` from JSON."""
    values = fields_of(Golden, raw, "golden")
    return Golden(**values | {"logits": tuple(values["logits"])})


def band_of(raw: object) -> ReviewBand:
    """Read a `ReviewBand` from JSON."""
    return ReviewBand(**fields_of(ReviewBand, raw, "review"))


def novelty_of(raw: object) -> Novelty | None:
    """Read a `Novelty` from JSON; None stays None."""
    return None if raw is None else Novelty(**fields_of(Novelty, raw, "novelty"))


def variant_of(raw: object) -> Variant:
    """Read a `Variant` from JSON."""
    values = fields_of(Variant, raw, "variants")
    own = {"review": None if values.get("review") is None else band_of(values["review"])}
    return Variant(**values | own | {"logits": tuple(values["logits"]), "novelty": novelty_of(values.get("novelty"))})
