"""The model manifest: labels, preprocessing, thresholds, hashes. It travels with the weights."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from app.core.errors import ManifestError
from app.core.parts import (
    SHA256,
    Golden,
    Novelty,
    Preprocessing,
    ReviewBand,
    Variant,
    band_of,
    fields_of,
    finite,
    golden_of,
    novelty_of,
    preprocessing_of,
    require,
    variant_of,
)

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

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+(?:-[0-9a-z.-]+)?")


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
        require(self.schema == SCHEMA_VERSION, f"schema: {SCHEMA_VERSION} is understood, not {self.schema!r}")
        require(bool(_NAME.fullmatch(self.name)), f"name: lower case, digits and '-', not {self.name!r}")
        require(bool(_VERSION.fullmatch(self.version)), f"version: such as 1.0.0, not {self.version!r}")
        require(sorted(self.labels) == ["ALL", "HEM"], f"labels: ALL and HEM, not {self.labels!r}")
        require(finite(self.temperature) and self.temperature > 0, "temperature: a positive number")
        require(MODEL_FILE in self.files, f"files: {MODEL_FILE} is missing")
        for file, digest in self.files.items():
            require(Path(file).name == file and file not in {"", ".", ".."}, f"files: a plain file name, not {file!r}")
            require(bool(SHA256.fullmatch(digest)), f"files.{file}: 64 hexadecimal digits")
        require(len(self.golden.logits) == len(self.labels), "golden.logits: one number per label")
        for name, variant in self.variants.items():
            require(bool(_NAME.fullmatch(name)), f"variants: lower case, digits and '-', not {name!r}")
            require(variant.file in self.files, f"variants.{name}: {variant.file} is not among the files")
            require(len(variant.logits) == len(self.labels), f"variants.{name}: one logit per label")

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
        raw = fields_of(cls, raw, "manifest")
        try:
            return cls(
                **raw
                | {
                    "labels": tuple(raw["labels"]),
                    "preprocessing": preprocessing_of(raw["preprocessing"]),
                    "review": band_of(raw["review"]),
                    "golden": golden_of(raw["golden"]),
                    "variants": {name: variant_of(value) for name, value in raw.get("variants", {}).items()},
                    "novelty": novelty_of(raw.get("novelty")),
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
