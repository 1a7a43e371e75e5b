"""Decode plain PNGs faster than Pillow does, to the same pixels.

A laboratory's cells are PNGs of three 8-bit channels, and decoding is what costs most beside the model. kornia-rs
decodes them by Rust's `png`, four times as fast. All else is left to Pillow, which knows every kind of PNG.
"""

import struct
from typing import Final

import numpy as np
from kornia_rs import io as kornia_io
from numpy.typing import NDArray

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

_CHUNK: Final = struct.Struct(">I4s")
_CRC_BYTES: Final = 4
_HEADER: Final = struct.Struct(">IIBBBBB")
_FIRST: Final = _CHUNK.pack(_HEADER.size, b"IHDR")
_HEADER_AT: Final = len(SIGNATURE) + len(_FIRST)
_EIGHT_BITS_RGB: Final = (8, 2, 0, 0, 0)  # depth, colour type, compression, filter, not interlaced
# What may stand in a file without a say in its pixels: no transparency, animation, orientation or text that has one.
_PLAIN: Final = frozenset({b"IHDR", b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"sBIT", b"bKGD", b"tIME"})
# The decoder keeps Python's lock, so a larger picture would hold up the others.
_MAX_PIXELS: Final = 1024 * 1024
# Of a megapixel in pieces of 4 KB. A file of empty chunks is not worth the walk.
_MAX_CHUNKS: Final = 1024


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
    if not data.startswith(SIGNATURE + _FIRST) or len(data) < _HEADER_AT + _HEADER.size:
        return None
    width, height, *rest = _HEADER.unpack_from(data, _HEADER_AT)
    if tuple(rest) != _EIGHT_BITS_RGB:
        return None
    at = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        if at + _CHUNK.size > len(data):
            return None
        length, kind = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size + length + _CRC_BYTES
        if kind not in _PLAIN or at > len(data):
            return None
        if kind == b"IEND":
            return height, width
    return None
