"""Plain PNGs: the same pixels as Pillow's, and nothing else is taken."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from app.core import png
from app.core.imaging import decode
from training.data.drawn import draw_cell

MAX_PIXELS = 1 << 20
CELL = draw_cell("ALL", seed=1, side_px=50)


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(data: bytes, kind: bytes, content: bytes = b"\0") -> bytes:
    """A PNG with one chunk more, before its end."""
    end = data.rindex(b"IEND") - 4
    return data[:end] + chunk(kind, content) + data[end:]


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
    st.integers(0, 9),
)
def test_pixels_are_those_that_were_written(pixels: NDArray[np.uint8], level: int) -> None:
    data = encode(Image.fromarray(pixels), compress_level=level)
    decoded = png.decode_plain(data, MAX_PIXELS)
    assert decoded is not None
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("kind", [b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"sBIT", b"bKGD", b"tIME"])
def test_chunks_without_a_say_in_the_pixels_change_nothing(kind: bytes) -> None:
    contents = {b"sRGB": b"\0", b"gAMA": struct.pack(">I", 45455), b"pHYs": struct.pack(">IIB", 2835, 2835, 1)}
    data = encode(CELL)
    head = data[:33]
    with_it = head + chunk(kind, contents.get(kind, bytes(3))) + data[33:]
    decoded = png.decode_plain(with_it, MAX_PIXELS)
    assert decoded is not None
    assert np.array_equal(decoded, np.asarray(CELL))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        png.SIGNATURE,
        encode(CELL)[:-1],
        encode(CELL)[:-12],
        encode(CELL)[:300],
        encode(CELL.convert("L")),
        encode(CELL.convert("RGBA")),
        encode(CELL.convert("P")),
        encode(CELL.convert("I;16")),
        encode(CELL, transparency=(0, 0, 0)),
        with_chunk(encode(CELL), b"eXIf"),
        with_chunk(encode(CELL), b"acTL", bytes(8)),
        with_chunk(encode(CELL), b"iTXt", b"XML:com.adobe.xmp"),
        with_chunk(encode(CELL), b"tEXt", b"Raw profile type exif\0"),
        # An interlaced one, by its header.
        encode(CELL)[:28] + b"\1" + encode(CELL)[29:],
        # A header that stands behind another chunk, or holds less than one should.
        png.SIGNATURE + chunk(b"gAMA", bytes(4)) + encode(CELL)[8:],
        png.SIGNATURE + chunk(b"IHDR", bytes(4)) + chunk(b"IEND", b""),
        # A chunk that claims to be longer than the file.
        encode(CELL)[:33] + struct.pack(">I", 2**31 - 1) + encode(CELL)[37:],
    ],
)
def test_all_else_is_left_to_pillow(data: bytes) -> None:
    assert png.decode_plain(data, MAX_PIXELS) is None


@given(st.data())
def test_what_is_damaged_is_left_to_pillow_or_unharmed(data: st.DataObject) -> None:
    good = bytearray(encode(CELL))
    position = data.draw(st.integers(0, len(good) - 1))
    good[position] = data.draw(st.integers(0, 255))
    decoded = png.decode_plain(bytes(good), MAX_PIXELS)
    assert decoded is None or np.array_equal(decoded, np.asarray(CELL))


@given(st.data())
def test_any_scanlines_come_out_as_pillow_s(data: st.DataObject) -> None:
    """All filters, wrong ones too, and too few or too many bytes, in chunks that are whole."""
    width, height = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    filters = st.sampled_from([0, 1, 2, 3, 4, 5])
    line = st.builds(
        lambda kind, content: bytes([kind]) + content, filters, st.binary(min_size=3 * width, max_size=3 * width)
    )
    lines = b"".join(data.draw(st.lists(line, min_size=height, max_size=height)))
    lines = data.draw(st.sampled_from([lines, lines[:-1], lines[: len(lines) // 2], lines + b"more"]))
    packed = zlib.compress(lines)
    cut = data.draw(st.integers(0, len(packed)))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", packed[:cut]), (b"IDAT", packed[cut:]), (b"IEND", b"")]
    whole = png.SIGNATURE + b"".join(chunk(kind, content) for kind, content in parts)
    decoded = png.decode_plain(whole, MAX_PIXELS)
    if decoded is not None:
        with Image.open(io.BytesIO(whole)) as image:
            assert np.array_equal(decoded, np.asarray(image))


class Panic(BaseException):
    """As PyO3's, which is no `Exception`."""


def test_a_panic_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise Panic

    monkeypatch.setattr("app.core.png.kornia_io.decode_image_png_u8", broken)
    assert png.decode_plain(encode(CELL), MAX_PIXELS) is None
    assert np.array_equal(np.asarray(decode(encode(CELL))), np.asarray(CELL))


def test_a_file_of_empty_chunks_is_not_walked_to_its_end() -> None:
    data = encode(CELL)
    few, many = (data[:33] + chunk(b"tIME", b"") * count + data[33:] for count in (10, 100_000))
    assert png.decode_plain(few, MAX_PIXELS) is not None
    assert png.decode_plain(many, MAX_PIXELS) is None


def test_bounds_are_kept() -> None:
    data = encode(CELL)
    assert png.decode_plain(data, 50 * 50) is not None
    assert png.decode_plain(data, 50 * 50 - 1) is None
    large = encode(Image.new("RGB", (1024, 1025)))
    assert png.decode_plain(large, 1 << 24) is None
    assert decode(large).size == (1024, 1025)


def test_decoding_takes_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    assert np.array_equal(np.asarray(decode(encode(CELL))), np.asarray(CELL))
