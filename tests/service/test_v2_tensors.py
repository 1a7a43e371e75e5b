"""Tensors of the Open Inference Protocol: round trips, also through Triton's own code, and refusals."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from app.core.errors import TensorError
from app.v2.tensors import TensorSpec, from_raw, from_values, to_raw, to_values

UINT8 = TensorSpec("image", "UINT8", (-1, 2, 3))
BYTES = TensorSpec("encoded", "BYTES", (-1,))
FP32 = TensorSpec("logits", "FP32", (-1, 2))
BOOL = TensorSpec("review", "BOOL", (-1,))

pixels = hnp.arrays(np.uint8, st.tuples(st.integers(0, 4), st.just(2), st.just(3)))
finite = hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.just(2)), elements=st.floats(width=32))
flags = hnp.arrays(np.bool_, st.integers(0, 9))


def objects(items: list[bytes]) -> NDArray[np.object_]:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


@given(pixels)
def test_pixels_come_back_from_bytes_and_from_values_flat_or_nested(array: NDArray[np.uint8]) -> None:
    for read in (
        from_raw(UINT8, array.shape, memoryview(to_raw(array, "UINT8"))),
        from_values(UINT8, array.shape, to_values(array, "UINT8")),
        from_values(UINT8, array.shape, array.tolist()),
    ):
        assert read.dtype == np.uint8
        assert np.array_equal(read, array)


@given(finite)
def test_numbers_are_the_same_bits_in_bytes_and_in_values(array: NDArray[np.float32]) -> None:
    read = from_raw(FP32, array.shape, memoryview(to_raw(array, "FP32")))
    assert np.array_equal(read, array, equal_nan=True)
    values = np.array(to_values(array, "FP32"), np.float32).reshape(array.shape)
    assert np.array_equal(values, array, equal_nan=True)


@given(flags)
def test_flags(array: NDArray[np.bool_]) -> None:
    assert np.array_equal(from_raw(BOOL, array.shape, memoryview(to_raw(array, "BOOL"))), array)
    assert to_values(array, "BOOL") == array.tolist()


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_bytes_as_triton_writes_and_reads_them(items: list[bytes]) -> None:
    array = objects(items)
    raw = to_raw(array, "BYTES")
    assert from_raw(BYTES, [len(items)], memoryview(raw)).tolist() == items
    assert deserialize_bytes_tensor(raw).tolist() == items
    if items:
        assert serialize_byte_tensor(array).item() == raw


@given(st.lists(st.text(max_size=20), max_size=5))
def test_text_stands_for_its_utf_8(items: list[str]) -> None:
    array = from_values(BYTES, [len(items)], items)
    assert array.tolist() == [item.encode() for item in items]
    assert to_values(array, "BYTES") == items


@given(st.binary(max_size=40), st.integers(0, 2**62))
def test_any_bytes_are_a_tensor_or_a_tensor_error(raw: bytes, count: int) -> None:
    for spec, shape in ((BYTES, [count]), (UINT8, [count, 2, 3]), (FP32, [count, 2])):
        try:
            array = from_raw(spec, shape, memoryview(raw))
        except TensorError as error:
            assert spec.name in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert array.shape == tuple(shape)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=6), st.integers(0, 3))
def test_any_json_is_a_tensor_or_a_tensor_error(values: list[Any], count: int) -> None:
    for spec, shape in ((BYTES, [count]), (UINT8, [count, 2, 3])):
        try:
            array = from_values(spec, shape, values)
        except TensorError as error:
            assert spec.name in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert array.shape == tuple(shape)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 256],
        [1, 2, 3, 4, 5, -1],
        [1, 2, 3, 4, 5, 6.0],
        [1, 2, 3, 4, 5, True],
        [1, 2, 3, 4, 5, "6"],
        [1, 2, 3, 4, 5, None],
        [[1, 2, 3, 4, 5, 6]],
        [[[1, 2], [3, 4], [5, 6]]],
        [[[1, 2, 3], [4, 5, 6]], 7],
        [[[1, 2, 3], [4, 5, [6]]]],
        [[1, 2, 3], [4, 5, 6]],
    ],
)
def test_wrong_values(values: list[Any]) -> None:
    with pytest.raises(TensorError, match="'image'"):
        from_values(UINT8, [1, 2, 3], values)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x01\x00\x00", "ends after 0 of 1"),
        (b"\x05\x00\x00\x00abc", "says that it has 5 bytes; 3 are left"),
        (b"\x01\x00\x00\x00ab", "1 bytes are left"),
        (b"\xff\xff\xff\xff", "4,294,967,295 bytes; 0 are left"),
    ],
)
def test_wrong_lengths(raw: bytes, words: str) -> None:
    with pytest.raises(TensorError, match=words):
        from_raw(BYTES, [1], memoryview(raw))


@pytest.mark.parametrize(
    ("datatype", "shape", "words"),
    [
        ("FP32", [1, 2, 3], "datatype 'FP32'; expected 'UINT8'"),
        ("UINT8", [1, 2], r"\[1, 2\]; expected \[-1, 2, 3\]"),
        ("UINT8", [1, 2, 4], r"\[1, 2, 4\]"),
        ("UINT8", [-1, 2, 3], r"\[-1, 2, 3\]; expected"),
        ("UINT8", [], r"\[\]"),
    ],
)
def test_wrong_type_or_shape(datatype: str, shape: list[int], words: str) -> None:
    with pytest.raises(TensorError, match=words):
        UINT8.check(datatype, shape)
