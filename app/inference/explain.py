"""Heat-maps: from a model's evidence to a picture of which regions spoke for ALL and which for HEM."""

import asyncio
import io
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.core import imaging
from app.core.errors import NoExplanationError
from app.core.parts import Preprocessing
from app.core.postprocess import Prediction
from app.inference.classifier import Answer, Upload
from app.inference.engine import Serving

MAX_SIDE_PX: Final = 1024
"""Longest side of the drawn picture; a larger one is made smaller first."""

# From blue (HEM) over white to orange (ALL): anchors of ColorBrewer's RdBu and PuOr (Harrower & Brewer 2003,
# doi:10.1179/000870403235002042). Blue and orange stay apart in each common kind of colour blindness.
_VALUES: Final = (-1.0, -0.66, -0.33, 0.0, 0.33, 0.66, 1.0)
_COLOURS: Final = np.array(
    [
        (33, 102, 172),
        (103, 169, 207),
        (209, 229, 240),
        (247, 247, 247),
        (254, 224, 182),
        (253, 184, 99),
        (224, 97, 1),
    ],
    dtype=np.float32,
)
_OPACITY: Final = 0.8  # of the strongest evidence over the picture
_UNSEEN: Final = 0.35  # brightness of what lies outside the model's crop


class Style(StrEnum):
    """How the evidence is drawn."""

    OVERLAY = "overlay"
    SIDE_BY_SIDE = "side-by-side"
    MAP = "map"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One picture's answer with its heat-map.

    Attributes:
        prediction: The same as `/predict` gives.
        png: The heat-map, encoded.
    """

    prediction: Prediction
    png: bytes


async def explain(serving: Serving, upload: Upload, *, timeout_s: float, style: Style, max_pixels: int) -> Explanation:
    """Answer one picture and draw why.

    Args:
        serving: The model; the picture goes through the same queue and batches as any other.
        upload: The picture.
        timeout_s: After it, the answer is given up.
        style: How to draw.
        max_pixels: Most pixels of the picture.

    Raises:
        NoExplanationError: The model has no evidence output.
        LeukoscopeError: As `Classifier.answer`, and whatever is wrong with the picture itself.
    """
    (answer,) = await serving.classifier.answer([upload], timeout_s)
    if not isinstance(answer, Answer):
        raise answer
    evidence = evidence_of(answer, str(serving.model.installed.ref))
    spec = serving.model.manifest.preprocessing
    png = await asyncio.to_thread(draw_png, upload.data, evidence, spec, style, max_pixels=max_pixels)
    return Explanation(answer.prediction, png)


def evidence_of(answer: Answer, model: str) -> NDArray[np.float32]:
    """Return the evidence map of an answer, shape ``(height, width)``.

    Raises:
        NoExplanationError: The model gives none.
    """
    if answer.outputs.evidence is None:
        raise NoExplanationError(f"{model} has no evidence output, so its answers can't be explained.")
    return answer.outputs.evidence


def draw_png(
    data: bytes, evidence: NDArray[np.float32], spec: Preprocessing, style: Style, *, max_pixels: int
) -> bytes:
    """Draw the evidence for an encoded picture; see `draw`.

    Args:
        data: The picture's bytes.
        evidence: Shape ``(height, width)`` over the model's crop, positive for ALL.
        spec: The model's preprocessing.
        style: How to draw.
        max_pixels: Most pixels of the picture.

    Returns:
        A PNG.

    Raises:
        ImageError: The picture can't be decoded.
    """
    buffer = io.BytesIO()
    draw(imaging.decode(data, max_pixels=max_pixels), evidence, spec, style).save(buffer, format="PNG")
    return buffer.getvalue()


def draw(picture: Image.Image, evidence: NDArray[np.float32], spec: Preprocessing, style: Style) -> Image.Image:
    """Draw the evidence in the picture's own coordinates.

    Colours are relative to the strongest evidence in this picture, so two pictures can be compared
    by where the evidence lies, not by how much there is.

    Args:
        picture: Mode ``RGB``, as decoded.
        evidence: Shape ``(height, width)`` over the model's crop, positive for ALL.
        spec: The model's preprocessing, which tells where the crop lies.
        style: ``overlay``: over the picture in grey, with what the model does not see dimmed;
            ``side-by-side``: the picture, and right of it the overlay; ``map``: the map alone.

    Returns:
        Mode ``RGB``; as large as the picture (side by side: twice as wide), but its longest side
        at most `MAX_SIDE_PX`.
    """
    scale = min(1.0, MAX_SIDE_PX / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture if size == picture.size else picture.resize(size, Image.Resampling.BOX)
    left, top, right, bottom = (side * scale for side in imaging.crop_box(picture.size, spec))
    values, seen = spread(evidence, size, (round(left), round(top), round(right), round(bottom)))
    if style is Style.MAP:
        return _image(colour(values))
    overlay = _image(_over(small, values, seen))
    if style is Style.OVERLAY:
        return overlay
    both = Image.new("RGB", (2 * size[0], size[1]))
    both.paste(small, (0, 0))
    both.paste(overlay, (size[0], 0))
    return both


def spread(
    evidence: NDArray[np.float32], size: tuple[int, int], box: tuple[int, int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lay the coarse evidence over a picture, smoothly, scaled by its own largest value.

    Args:
        evidence: Shape ``(rows, columns)``.
        size: Width and height of the picture.
        box: Left, top, right and bottom of the crop in it; may lie beyond its edges.

    Returns:
        Values -1..1 and whether the model sees the pixel; both of shape ``(height, width)``.
    """
    left, top, right, bottom = box
    strongest = float(np.abs(evidence).max())
    scaled = Image.fromarray(evidence / strongest if strongest > 0 else np.zeros_like(evidence))
    crop = scaled.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC)
    canvas = Image.new("F", size)
    canvas.paste(crop, (left, top))
    seen = np.zeros((size[1], size[0]), dtype=bool)
    seen[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return np.clip(np.asarray(canvas, dtype=np.float32), -1, 1), seen


def colour(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the colour of each value -1..1: blue for HEM, white for neither, orange for ALL; RGB, 0..255."""
    channels = [np.interp(values, _VALUES, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _over(picture: Image.Image, values: NDArray[np.float32], seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    grey = np.asarray(picture.convert("L"), dtype=np.float32) * np.where(seen, 1.0, _UNSEEN)
    alpha = (_OPACITY * np.abs(values))[..., None]
    return np.asarray(grey[..., None] * (1 - alpha) + colour(values) * alpha, dtype=np.float32)


def _image(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.rint(pixels).astype(np.uint8))
