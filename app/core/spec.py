"""The model manifest: labels, preprocessing, thresholds, hashes. It travels with the weights."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from app.core.errors import ManifestError

SCHEMA_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
MODEL_FILE: Final = "model.onnx"
REPORT_FILE: Final = "report.json"
CARD_FILE: Final = "MODEL_CARD.md"

# The graph's input, uint8 of shape (batch, size_px, size_px, 3), and its float32 outputs: logits
# (batch, labels); then, where the model has them, the vector that its last layer takes
# (batch, width), a signed map (batch, height, width) of what spoke for ALL (positive) or HEM, and how
# unlike the training cells the picture is (batch,).
INPUT_NAME: Final = "image"
LOGITS_NAME: Final = "logits"
FEATURES_NAME: Final = "features"
EVIDENCE_NAME: Final = "evidence"
NOVELTY_NAME: Final = "novelty"

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Denoise = Literal["none", "median-3", "median-5"]

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+(?:-[0-9a-z.-]+)?")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ManifestError(message)


def _finite(*values: float) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


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
    """

    crop_px: int | None
    size_px: int
    resample: Resample
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    denoise: Denoise = "none"

    def __post_init__(self) -> None:
        crop = self.crop_px
        _require(
            crop is None or (isinstance(crop, int) and 16 <= crop <= 4096), f"crop_px: null or 16..4096, not {crop!r}"
        )
        _require(
            isinstance(self.size_px, int) and 16 <= self.size_px <= 1024, f"size_px: 16..1024, not {self.size_px!r}"
        )
        _require(self.resample in get_args(Resample), f"resample: one of {get_args(Resample)}, not {self.resample!r}")
        _require(self.denoise in get_args(Denoise), f"denoise: one of {get_args(Denoise)}, not {self.denoise!r}")
        _require(len(self.mean) == 3 and _finite(*self.mean), f"mean: 3 finite numbers, not {self.mean!r}")
        _require(
            len(self.std) == 3 and _finite(*self.std) and min(self.std) > 0,
            f"std: 3 positive numbers, not {self.std!r}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewBand:
    """Where a person should look again: ``low <= P(ALL) <= high``, after temperature scaling."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require(
            _finite(self.low, self.high) and 0 <= self.low <= self.high <= 1,
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
        _require(isinstance(self.method, str) and bool(self.method), "novelty.method: a text")
        _require(_finite(self.threshold) and self.threshold > 0, "novelty.threshold: a positive number")


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
        _require(bool(_SHA256.fullmatch(self.input_sha256)), "golden.input_sha256: 64 hexadecimal digits")
        _require(_finite(*self.logits), "golden.logits: finite numbers")
        _require(_finite(self.atol) and self.atol > 0, "golden.atol: a positive number")


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
        _require(own is None or (_finite(own) and own > 0), "variants: temperature: null or a positive number")
        _require(_finite(*self.logits), "variants: logits: finite numbers")
        _require(_finite(self.atol) and self.atol > 0, "variants: atol: a positive number")
        _require(_finite(*self.figures.values()), "variants: figures: finite numbers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that the service must know of a model, and what its users may ask.

    Attributes:
        name: Such as ``efficientnet-b3``; the folder's parent carries the same name.
        version: Semantic version; the folder carries the same.
        architecture: The network's name in the training registry.
        precision: Of the arithmetic, such as ``fp32``.
        labels: The classes, in the order of the logits.
        preprocessing: From picture to input.
        temperature: Logits are divided by it (Guo et al. 2017, arXiv:1706.04599).
        review: The band of P(ALL) that a person should see.
        files: Each other file of the folder and its SHA-256.
        golden: Input and output to reproduce.
        split: Name of the split that the figures were measured on.
        provenance: Data, start weights, configuration, seed, code version; free form.
        licence: Of the weights, with attributions; free form.
        variants: The same model in other precisions, by their names.
        novelty: How to use the graph's output ``novelty``; None where it has none.
    """

    name: str
    version: str
    architecture: str
    precision: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    temperature: float
    review: ReviewBand
    files: dict[str, str]
    golden: Golden
    split: str
    provenance: dict[str, Any]
    licence: dict[str, Any]
    variants: dict[str, Variant] = field(default_factory=dict)
    novelty: Novelty | None = None
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _require(self.schema == SCHEMA_VERSION, f"schema: {SCHEMA_VERSION} is understood, not {self.schema!r}")
        _require(bool(_NAME.fullmatch(self.name)), f"name: lower case, digits and '-', not {self.name!r}")
        _require(bool(_VERSION.fullmatch(self.version)), f"version: such as 1.0.0, not {self.version!r}")
        _require(sorted(self.labels) == ["ALL", "HEM"], f"labels: ALL and HEM, not {self.labels!r}")
        _require(_finite(self.temperature) and self.temperature > 0, "temperature: a positive number")
        _require(MODEL_FILE in self.files, f"files: {MODEL_FILE} is missing")
        for file, digest in self.files.items():
            _require(Path(file).name == file and file not in {"", ".", ".."}, f"files: a plain file name, not {file!r}")
            _require(bool(_SHA256.fullmatch(digest)), f"files.{file}: 64 hexadecimal digits")
        _require(len(self.golden.logits) == len(self.labels), "golden.logits: one number per label")
        for name, variant in self.variants.items():
            _require(bool(_NAME.fullmatch(name)), f"variants: lower case, digits and '-', not {name!r}")
            _require(variant.file in self.files, f"variants.{name}: {variant.file} is not among the files")
            _require(len(variant.logits) == len(self.labels), f"variants.{name}: one logit per label")

    def in_precision(self, precision: str) -> Self:
        """Return the manifest as it holds for a variant: with its own temperature, review band and novelty.

        Args:
            precision: Name of a variant; for any other the manifest stays as it is.
        """
        variant = self.variants.get(precision)
        if variant is None:
            return self
        return dataclasses.replace(
            self,
            temperature=variant.temperature or self.temperature,
            review=variant.review or self.review,
            novelty=variant.novelty or self.novelty,
        )

    def to_json(self) -> str:
        """Return the manifest as indented JSON, ending in a line break."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse and check a manifest.

        Raises:
            ManifestError: No JSON, a key missing or unknown, or a value out of range.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"not JSON: {error}") from error
        raw = _object(cls, raw, "manifest")
        try:
            return cls(
                **raw
                | {
                    "labels": tuple(raw["labels"]),
                    "preprocessing": _preprocessing(raw["preprocessing"]),
                    "review": _band(raw["review"]),
                    "golden": _golden(raw["golden"]),
                    "variants": {name: _variant(value) for name, value in raw.get("variants", {}).items()},
                    "novelty": _novelty(raw.get("novelty")),
                }
            )
        except (TypeError, AttributeError) as error:
            raise ManifestError(f"a value has the wrong type: {error}") from error

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``manifest.json`` of a model folder.

        Raises:
            ManifestError: The file is missing, unreadable, or not a manifest.
        """
        path = folder / MANIFEST_FILE
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path}: can't be read: {error}") from error
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from error


def _object(cls: type[Any], raw: object, where: str) -> dict[str, Any]:
    """Check that `raw` is an object with just the fields of dataclass `cls`."""
    if not isinstance(raw, dict):
        raise ManifestError(f"{where}: expected an object, not {type(raw).__name__}")
    fields = {field.name for field in dataclasses.fields(cls)}
    required = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    _require(not (raw.keys() - fields), f"{where}: unknown keys {sorted(raw.keys() - fields)}")
    _require(not (required - raw.keys()), f"{where}: missing keys {sorted(required - raw.keys())}")
    return raw


def _preprocessing(raw: object) -> Preprocessing:
    values = _object(Preprocessing, raw, "preprocessing")
    return Preprocessing(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})


def _golden(raw: object) -> Golden:
    values = _object(Golden, raw, "golden")
    return Golden(**values | {"logits": tuple(values["logits"])})


def _band(raw: object) -> ReviewBand:
    return ReviewBand(**_object(ReviewBand, raw, "review"))


def _novelty(raw: object) -> Novelty | None:
    return None if raw is None else Novelty(**_object(Novelty, raw, "novelty"))


def _variant(raw: object) -> Variant:
    values = _object(Variant, raw, "variants")
    own = {"review": None if values.get("review") is None else _band(values["review"])}
    return Variant(**values | own | {"logits": tuple(values["logits"]), "novelty": _novelty(values.get("novelty"))})
