"""Decode plain PNGs faster than Pillow does, to the same pixels.

A laboratory's cells are PNGs of three 8-bit channels, and decoding is what costs most beside the model. kornia-rs
decodes them by Rust's `png`, four times as fast. All else is left to Pillow, which knows every kind of PNG.
"""

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from kornia_rs import io as kornia_io
from numpy.typing import NDArray

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

_CHUNK: Final = struct.Struct(">I4s")
_CRC_BYTES: Final = 4
_HEADER: Final = struct.Struct(">IIBBBBB")
_EIGHT_BITS_RGB: Final = (8, 2, 0, 0, 0)  # depth, colour type, compression, filter, not interlaced
# What may stand in a file without a say in its pixels: no transparency, animation, orientation or text that has one.
_PLAIN: Final = frozenset({b"IHDR", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"sBIT", b"bKGD", b"tIME"})
# The decoder keeps Python's lock, so a larger picture would hold up the others.
_MAX_PIXELS: Final = 1024 * 1024


def decode_plain(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """Decode a PNG that has three 8-bit channels, one frame, and nothing in it that bears on its pixels.

    Args:
        data: Any bytes.
        max_pixels: Most pixels (width times height).

    Returns:
        Shape ``(height, width, 3)``, RGB, 0..255; None for all other bytes, damaged files among them.
    """
    size = _plain_size(data)
    if size is None or not 0 < size[0] * size[1] <= min(max_pixels, _MAX_PIXELS):
        return None
    try:
        pixels: NDArray[np.uint8] = kornia_io.decode_image_png_u8(data, size, "rgb")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - of no finer type, and a panic of Rust's is no Exception; Pillow says what is wrong
        return None
    return pixels


def _plain_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a plain PNG that is whole, or None."""
    chunks = list(_chunks(data))
    if not chunks or chunks[-1][0] != b"IEND" or not _PLAIN.issuperset(kind for kind, _ in chunks):
        return None
    kind, header = chunks[0]
    if kind != b"IHDR" or len(header) != _HEADER.size:
        return None
    width, height, *rest = _HEADER.unpack(header)
    return (height, width) if tuple(rest) == _EIGHT_BITS_RGB else None


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and content of each whole chunk up to the last, IEND."""
    if not data.startswith(SIGNATURE):
        return
    view, at = memoryview(data), len(SIGNATURE)
    while at + _CHUNK.size + _CRC_BYTES <= len(data):
        length, kind = _CHUNK.unpack_from(data, at)
        end = at + _CHUNK.size + length
        if end + _CRC_BYTES > len(data):
            return
        yield kind, view[at + _CHUNK.size : end]
        if kind == b"IEND":
            return
        at = end + _CRC_BYTES
