"""Tensors of the Open Inference Protocol V2: to and from raw bytes, and to and from plain values.

Raw data is little-endian and row-major without padding; BOOL is one byte, and each element of
BYTES is its length as a 4-byte unsigned integer followed by its bytes. This is the layout of the
binary tensor data extension over HTTP and of the raw contents over gRPC.
"""

import math
import reprlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from app.core.errors import TensorError

Datatype = Literal["BOOL", "BYTES", "FP32", "UINT8"]

_NUMPY: Final[dict[Datatype, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
}
_LENGTH: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor must be.

    Attributes:
        name: Of the input or output.
        datatype: Of each element.
        shape: -1 where any length will do.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Refuse another type or shape.

        Raises:
            TensorError: With what came and what was expected.
        """
        if datatype != self.datatype:
            raise TensorError(
                f"Tensor {self.name!r} has datatype {reprlib.repr(datatype)}; expected {self.datatype!r}."
            )
        fits = len(shape) == len(self.shape) and all(
            (side >= 0 if wanted == -1 else side == wanted) for side, wanted in zip(shape, self.shape, strict=True)
        )
        if not fits:
            raise TensorError(
                f"Tensor {self.name!r} has shape {reprlib.repr(list(shape))}; expected {list(self.shape)}, "
                "where -1 is any length."
            )


def from_raw(spec: TensorSpec, shape: Sequence[int], raw: memoryview) -> NDArray[Any]:
    """Read a tensor from raw bytes.

    Args:
        spec: Its name and datatype.
        shape: Already checked against `spec`.
        raw: Just the tensor's bytes.

    Returns:
        Array of `shape`; BYTES as objects, all others as a view of `raw`.

    Raises:
        TensorError: Too few or too many bytes.
    """
    count = math.prod(shape)
    if spec.datatype == "BYTES":
        return _objects(_split(spec.name, count, raw), shape)
    dtype = _NUMPY[spec.datatype]
    if len(raw) != count * dtype.itemsize:
        raise TensorError(
            f"Tensor {spec.name!r} has {len(raw):,} bytes of binary data; "
            f"its shape {list(shape)} needs {count * dtype.itemsize:,}."
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def from_values(spec: TensorSpec, shape: Sequence[int], values: Sequence[Any]) -> NDArray[Any]:
    """Read an input tensor from plain values, as in JSON or in gRPC's typed contents.

    Args:
        spec: Its name; its datatype must be UINT8 or BYTES.
        shape: Already checked against `spec`.
        values: All elements in row-major order, flat, or nested as `shape` says. Of BYTES, text
            stands for its UTF-8.

    Returns:
        Array of `shape`; BYTES as objects.

    Raises:
        TensorError: Too few or too many elements, uneven nesting, or elements of another type.
    """
    flat = _flatten(spec.name, shape, values)
    if spec.datatype == "BYTES":
        return _objects([_as_bytes(spec.name, value) for value in flat], shape)
    if spec.datatype != "UINT8":
        raise TensorError(f"Tensor {spec.name!r}: values of {spec.datatype} are not read.")
    try:
        if not set(map(type, flat)) <= {int}:  # a bool is no number here
            raise TypeError
        return np.frombuffer(bytes(flat), np.uint8).reshape(shape)
    except (TypeError, ValueError) as error:
        raise TensorError(f"Tensor {spec.name!r}: expected whole numbers 0..255 as data.") from error


def to_raw(array: NDArray[Any], datatype: Datatype) -> bytes:
    """Write a tensor as raw bytes; the elements of BYTES are bytes objects."""
    if datatype == "BYTES":
        return b"".join(_LENGTH.pack(len(item)) + item for item in array.flat)
    return array.astype(_NUMPY[datatype]).tobytes()


def to_values(array: NDArray[Any], datatype: Datatype) -> list[Any]:
    """Write a tensor as a flat list in row-major order; BYTES as text, which must be UTF-8."""
    if datatype == "BYTES":
        return [item.decode("utf-8") for item in array.flat]
    values: list[Any] = array.astype(_NUMPY[datatype]).ravel().tolist()
    return values


def _split(name: str, count: int, raw: memoryview) -> list[bytes]:
    items: list[bytes] = []
    at = 0
    while len(items) < count:
        begin = at + _LENGTH.size
        if begin > len(raw):
            raise TensorError(f"Tensor {name!r}: its binary data ends after {len(items)} of {count} elements.")
        at = begin + _LENGTH.unpack_from(raw, at)[0]
        if at > len(raw):
            raise TensorError(
                f"Tensor {name!r}: element {len(items)} says that it has {at - begin:,} bytes; "
                f"{len(raw) - begin:,} are left."
            )
        items.append(bytes(raw[begin:at]))
    if at != len(raw):
        raise TensorError(f"Tensor {name!r}: {len(raw) - at:,} bytes are left after its {count} elements.")
    return items


def _flatten(name: str, shape: Sequence[int], values: Sequence[Any]) -> Sequence[Any]:
    if values and isinstance(values[0], list):
        for side in shape[1:]:
            if not all(type(row) is list and len(row) == side for row in values):
                raise TensorError(
                    f"Tensor {name!r}: its data is not nested as its shape {list(shape)} says; "
                    "expected that, or a flat list."
                )
            values = list(chain.from_iterable(values))
    if len(values) != math.prod(shape):
        raise TensorError(
            f"Tensor {name!r}: its data has {len(values):,} elements; "
            f"its shape {list(shape)} needs {math.prod(shape):,}."
        )
    return values


def _as_bytes(name: str, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        if isinstance(value, str):
            return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TensorError(f"Tensor {name!r}: a text in its data is not Unicode.") from error
    raise TensorError(f"Tensor {name!r}: expected text as elements of its data, not {type(value).__name__}.")


def _objects(items: list[bytes], shape: Sequence[int]) -> NDArray[np.object_]:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)
