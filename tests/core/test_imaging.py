"""Decoding and preprocessing: every format and mode, and every way to be wrong."""

import dataclasses
import io
import struct
import zlib
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.core.errors import ImageError, ImageTooLargeError, ManifestError, UndecodableImageError
from app.core.imaging import decode, preprocess
from app.core.parts import Preprocessing, Resample
from training.data.drawn import draw_cell

CELL = draw_cell("ALL", seed=1, side_px=50)
BMP = b""


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


BMP = encode(CELL, "BMP")


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixels end at once."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def rgb16_tiff(values: NDArray[np.uint16]) -> bytes:
    """An uncompressed RGB TIFF with 16 bits per sample; Pillow reads such files but can't write them."""
    height, width, _ = values.shape
    data = values.astype("<u2").tobytes()
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 8 + len(data)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
        (284, 3, 1, 1),
    ]
    bits = struct.pack("<HHH", 16, 16, 16)
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data) + len(bits)) + data + bits + directory


@pytest.mark.parametrize(
    ("file_format", "options"), [("BMP", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_formats_keep_every_pixel(file_format: str, options: dict[str, object]) -> None:
    decoded = decode(encode(CELL, file_format, **options))
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(pixels(decoded), pixels(CELL))


def test_jpeg_is_close() -> None:
    decoded = decode(encode(CELL, "JPEG", quality=95))
    assert np.abs(pixels(decoded).astype(int) - pixels(CELL)).mean() < 5


def test_cmyk_jpeg_becomes_rgb() -> None:
    decoded = decode(encode(CELL.convert("CMYK"), "JPEG", quality=95))
    assert decoded.mode == "RGB"
    assert np.abs(pixels(decoded).astype(int) - pixels(CELL)).mean() < 6


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for file_format in ("TIFF", "PNG"):
        decoded = pixels(decode(encode(Image.fromarray(values), file_format)))
        np.testing.assert_array_equal(decoded[..., 0], np.round(values / 257).astype(np.uint8))
        np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_16_bit_rgb_tiff() -> None:
    values = pixels(CELL).astype(np.uint16) * 257
    np.testing.assert_array_equal(pixels(decode(rgb16_tiff(values))), pixels(CELL))


def test_palette() -> None:
    palette = CELL.quantize(32)
    for file_format in ("BMP", "PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(decode(encode(palette, file_format))), pixels(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_modes_become_rgb(mode: str) -> None:
    assert decode(encode(CELL.convert("L").convert(mode), "PNG")).mode == "RGB"


def test_transparent_pixels_become_black() -> None:
    rgba = CELL.convert("RGBA")
    rgba.paste((255, 255, 255, 0), (0, 0, 10, 10))
    decoded = pixels(decode(encode(rgba, "PNG")))
    assert decoded[:10, :10].max() == 0
    np.testing.assert_array_equal(decoded[10:, 10:], pixels(CELL)[10:, 10:])


def test_transparent_colour_becomes_black() -> None:
    image = Image.new("RGB", (20, 20), (255, 255, 255))
    image.paste((90, 50, 120), (5, 5, 15, 15))
    decoded = pixels(decode(encode(image, "PNG", transparency=(255, 255, 255))))
    assert decoded[0, 0].tolist() == [0, 0, 0]
    assert decoded[10, 10].tolist() == [90, 50, 120]


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(file_format: str) -> None:
    image = Image.new("RGB", (30, 20))
    image.paste((200, 0, 0), (0, 0, 5, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated a quarter to the right
    decoded = decode(encode(image, file_format, exif=exif))
    assert decoded.size == (20, 30)
    assert decoded.getpixel((19, 0)) == (200, 0, 0)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_several_frames_are_refused(file_format: str) -> None:
    frames = [draw_cell("HEM", seed, side_px=40) for seed in range(3)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    with pytest.raises(UndecodableImageError, match=r"frames|can't|not a picture"):
        decode(data)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(mode: str) -> None:
    with pytest.raises(UndecodableImageError, match="32-bit"):
        decode(encode(CELL.convert("L").convert(mode), "TIFF"))


@pytest.mark.parametrize("side_px", [10_000, 30_000])
def test_too_many_pixels_are_refused_from_the_header(side_px: int) -> None:
    # The pixel data is empty: had it been touched, the error would be another one.
    with pytest.raises(ImageTooLargeError, match="pixels"):
        decode(png_of_size(side_px, side_px))


def test_max_pixels_counts_width_times_height() -> None:
    assert decode(BMP, max_pixels=50 * 50).size == (50, 50)
    with pytest.raises(ImageTooLargeError):
        decode(BMP, max_pixels=50 * 50 - 1)


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", b"BM", b"<svg/>", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", bytes(99)]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImageError):
        decode(data)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(0, len(BMP) - 1))
def test_truncated_bmp(length: int) -> None:
    try:
        decoded = decode(BMP[:length])
    except UndecodableImageError:
        return
    # Only the padding of the last row is missing.
    assert length >= len(BMP) - 2
    np.testing.assert_array_equal(pixels(decoded), pixels(CELL))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_image_errors_only(data: st.DataObject) -> None:
    file_format = data.draw(st.sampled_from(["BMP", "PNG", "JPEG", "TIFF", "WEBP"]))
    damaged = bytearray(encode(CELL, file_format))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, min(len(damaged) - 1, 400)))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(damaged), max_pixels=1_000_000).mode == "RGB"
    except ImageError as error:
        assert str(error)  # noqa: PT017 - an image error is one of two right outcomes


def spec(crop_px: int | None, size_px: int) -> Preprocessing:
    return Preprocessing(
        crop_px=crop_px, size_px=size_px, resample="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )


def test_preprocess_gives_the_models_shape() -> None:
    array = preprocess(CELL, spec(None, 32))
    assert array.shape == (32, 32, 3)
    assert array.dtype == np.uint8
    assert array.flags.writeable
    np.testing.assert_array_equal(array, preprocess(CELL, spec(None, 32)))


def test_preprocess_crops_the_centre_without_resampling() -> None:
    np.testing.assert_array_equal(preprocess(CELL, spec(30, 30)), pixels(CELL)[10:40, 10:40])


@given(st.data())
def test_black_that_is_not_computed_would_have_come_out_black(data: st.DataObject) -> None:
    """Whatever is resized comes out as if all of it were resized by Pillow, to the last bit."""
    width = data.draw(st.sampled_from([40, 60, 64, 77, 160, 320]))
    height = data.draw(st.sampled_from([width, width, 90]))
    size_px = data.draw(st.sampled_from([28, 56, 64, 90, 224]))
    resample: Resample = data.draw(st.sampled_from(get_args(Resample)))
    left, right = sorted(data.draw(st.integers(0, width)) for _ in range(2))
    top, bottom = sorted(data.draw(st.integers(0, height)) for _ in range(2))
    picture = np.zeros((height, width, 3), np.uint8)
    seed = data.draw(st.integers(0, 2**32 - 1))
    picture[top:bottom, left:right] = np.random.default_rng(seed).integers(0, 256, (bottom - top, right - left, 3))
    image = Image.fromarray(picture)
    expected = image.resize((size_px, size_px), Image.Resampling[resample.upper()])
    found = preprocess(image, dataclasses.replace(spec(None, size_px), resample=resample))
    np.testing.assert_array_equal(found, pixels(expected))


def test_preprocess_adds_black_around_a_small_picture() -> None:
    array = preprocess(Image.new("RGB", (20, 16), (9, 9, 9)), spec(40, 40))
    assert array[12:28, 10:30].min() == 9
    assert array.sum() == 20 * 16 * 9 * 3


def test_a_median_filter_takes_single_wrong_pixels_away() -> None:
    plain = np.full((64, 64, 3), 100, dtype=np.uint8)
    noisy = plain.copy()
    noisy[20, 20] = 255
    median = dataclasses.replace(spec(64, 64), denoise="median-3")
    np.testing.assert_array_equal(preprocess(Image.fromarray(noisy), median), plain)


def test_an_unknown_denoising_is_refused() -> None:
    with pytest.raises(ManifestError, match="denoise"):
        dataclasses.replace(spec(64, 64), denoise="bilateral")  # type: ignore[arg-type]
