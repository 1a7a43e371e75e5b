"""Decode an uploaded picture, and make of it what the model takes: once, for training and service."""

import io
import math
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from app.core.errors import ImageError, ImageTooLargeError, UndecodableImageError
from app.core.parts import Preprocessing, Resample
from app.core.png import decode_plain

ACCEPTED_FORMATS: Final = ("BMP", "PNG", "JPEG", "TIFF", "WEBP")
DEFAULT_MAX_PIXELS: Final = 4096 * 4096

_EXPECTED: Final = "expected one BMP, PNG, JPEG, TIFF or WebP picture"
_RESAMPLING: Final = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# How far a filter reaches from its middle, in pixels of the smaller picture.
_REACH: Final[dict[Resample, float]] = {"box": 0.5, "bilinear": 1, "hamming": 1, "bicubic": 2, "lanczos": 3}

_DENOISING: Final = {"median-3": ImageFilter.MedianFilter(3), "median-5": ImageFilter.MedianFilter(5)}

# Process-wide on purpose: `catch_warnings` is not safe in the threads that decode.
warnings.simplefilter("error", Image.DecompressionBombWarning)


def decode(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode one picture to 8-bit RGB.

    Transparent pixels become black, the background of a segmented cell. 16-bit grey is scaled
    to 8 bits, CMYK and palettes are converted, and an EXIF orientation is applied.

    Args:
        data: The file's bytes: BMP, PNG, JPEG, TIFF or WebP.
        max_pixels: Most pixels (width times height); checked before the pixels are decoded.

    Returns:
        A picture in mode ``RGB``.

    Raises:
        UndecodableImageError: Not a picture of these formats, damaged, animated, or of a pixel
            type without a defined range (32-bit integers, floats).
        ImageTooLargeError: More than `max_pixels`.
    """
    if not data:
        raise UndecodableImageError(f"The picture is empty (0 bytes); {_EXPECTED}.")
    plain = decode_plain(data, max_pixels)
    if plain is not None:
        return Image.fromarray(plain)
    try:
        with Image.open(io.BytesIO(data), formats=ACCEPTED_FORMATS) as image:
            _check(image, max_pixels)
            image.load()
            return _to_rgb(_upright(image))
    except ImageError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageTooLargeError(f"The picture has too many pixels; at most {max_pixels:,} are accepted.") from error
    except UnidentifiedImageError as error:
        raise UndecodableImageError(f"The bytes are not a picture that can be read; {_EXPECTED}.") from error
    except Exception as error:  # Pillow's plugins raise nearly every built-in type on damaged files.
        raise UndecodableImageError(f"The picture is damaged or incomplete; {_EXPECTED}.") from error


def preprocess(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Crop, denoise and resize a picture to the model's input.

    The scaling by mean and standard deviation is inside the exported graph, so these bytes are
    all that travels to the model.

    Args:
        image: Mode ``RGB``, of any size. Where the crop is larger than the picture, black is added.
        spec: The model's preprocessing.

    Returns:
        Array of shape ``(size_px, size_px, 3)``, values 0..255.
    """
    if spec.crop_px is not None:
        image = image.crop(crop_box(image.size, spec))
    if spec.denoise != "none":
        image = image.filter(_DENOISING[spec.denoise])
    return _resized(image, spec)


def crop_box(size: tuple[int, int], spec: Preprocessing) -> tuple[int, int, int, int]:
    """Return which part of a picture the model sees.

    Args:
        size: Width and height of the picture, in pixels.
        spec: The model's preprocessing.

    Returns:
        Left, top, right and bottom, in pixels of the picture; beyond its edges where the crop is larger.
    """
    width, height = size
    if spec.crop_px is None:
        return 0, 0, width, height
    left, top = (width - spec.crop_px) // 2, (height - spec.crop_px) // 2
    return left, top, left + spec.crop_px, top + spec.crop_px


def _resized(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Resize a picture to the model's input; of a square one, black that stays so is not computed."""
    side = spec.size_px
    if image.size == (side, side):
        return np.array(image, dtype=np.uint8)
    resampling, reach = _RESAMPLING[spec.resample], _REACH.get(spec.resample)
    seen = image.getbbox()
    if seen is None or reach is None or image.width != image.height:
        return np.array(image.resize((side, side), resampling), dtype=np.uint8)
    # Where a pixel of both sides begins: what begins there comes out as if all were resized.
    steps = math.gcd(image.width, side)
    step, out = image.width // steps, side // steps
    margin = math.ceil(reach * max(1.0, image.width / side)) + 1
    begins = [max(0, seen[axis] - margin) // step for axis in (0, 1)]
    ends = [min(steps, -(-(seen[axis + 2] + margin) // step)) for axis in (0, 1)]
    # Square, for Pillow resizes wide pictures in another order than others, and rounds between.
    count = max(ends[0] - begins[0], ends[1] - begins[1])
    left, top = (min(begin, steps - count) for begin in begins)
    box = (left * step, top * step, (left + count) * step, (top + count) * step)
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    part = image.resize((count * out, count * out), resampling, box=box)
    pixels[top * out : (top + count) * out, left * out : (left + count) * out] = np.asarray(part)
    return pixels


def _check(image: Image.Image, max_pixels: int) -> None:
    """Refuse, from the header alone, what can't or must not be decoded."""
    if image.width * image.height > max_pixels:
        raise ImageTooLargeError(
            f"The picture has {image.width} x {image.height} pixels; at most {max_pixels:,} in all are accepted."
        )
    # A camera's MPO is a JPEG with previews behind it: its first frame is the picture.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise UndecodableImageError(f"The file holds {frames} pictures or frames; {_EXPECTED}.")


def _upright(image: Image.Image) -> Image.Image:
    orientation: Final = 0x0112
    if image.getexif().get(orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any decoded picture to 8-bit RGB, or raise `UndecodableImageError`."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return _grey16_to_rgb(image)
    if image.mode in {"I", "F"}:
        raise UndecodableImageError("The picture has 32-bit pixels, whose range is not defined; expected 8 or 16 bits.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    grey = np.asarray(image, dtype=np.uint32)
    return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
