"""Bodies of inference requests: whatever comes is a request or an error that says what is wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import BodyTooLargeError, InputError
from app.core.spec import Manifest
from app.inference.classifier import Upload
from app.v2.http_body import parse, render
from app.v2.messages import InferOutput, InferResponse
from app.v2.model import read_pictures
from app.v2.tensors import TensorSpec
from tests.models import NAME, SIZE_PX, VERSION

LIMIT = 100_000

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def sometimes(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs here."""
    return st.one_of(value, value, value, anything)


parameters = st.fixed_dictionaries(
    {},
    optional={
        "binary_data_size": sometimes(st.integers(0, 60)),
        "binary_data": sometimes(st.booleans()),
        "shared_memory_region": anything,
        "content_type": anything,
    },
)
tensors = st.fixed_dictionaries(
    {
        "name": sometimes(st.sampled_from(["image", "encoded"])),
        "datatype": sometimes(st.sampled_from(["UINT8", "BYTES"])),
        "shape": sometimes(st.sampled_from([[1], [2], [1, SIZE_PX, SIZE_PX, 3], [0]])),
    },
    optional={"data": sometimes(st.lists(st.text(max_size=8), max_size=3)), "parameters": sometimes(parameters)},
)
outputs = st.fixed_dictionaries({"name": sometimes(st.just("label"))}, optional={"parameters": sometimes(parameters)})
messages = st.fixed_dictionaries(
    {"inputs": sometimes(st.lists(tensors, max_size=2))},
    optional={"id": anything, "outputs": sometimes(st.lists(outputs, max_size=2)), "parameters": sometimes(parameters)},
)


@pytest.fixture(scope="module")
def manifest(models_dir: Path) -> Manifest:
    return Manifest.load(models_dir / NAME / VERSION)


@given(st.binary(max_size=200), st.none() | st.text(max_size=5) | st.integers(0, 250).map(str))
def test_any_bytes_are_a_request_or_an_input_error(body: bytes, header: str | None) -> None:
    try:
        parse(body, header, max_json_bytes=LIMIT)
    except InputError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


@given(message=messages, raw=st.binary(max_size=60))
def test_any_message_gives_pictures_or_an_input_error(manifest: Manifest, message: dict[str, Any], raw: bytes) -> None:
    head = json.dumps(message).encode()
    try:
        request = parse(head + raw, str(len(head)), max_json_bytes=LIMIT)
        pictures = read_pictures(request.inputs, manifest, max_images=4)
    except InputError as error:
        assert 0 < len(str(error)) < 600  # noqa: PT017 - either outcome is right
    else:
        assert pictures
        assert all(isinstance(picture, Upload | np.ndarray) for picture in pictures)


def test_the_bound_is_of_the_json_alone() -> None:
    head = b'{"inputs": []}'
    assert parse(head + bytes(0), str(len(head)), max_json_bytes=len(head)).inputs == ()
    with pytest.raises(BodyTooLargeError):
        parse(head, None, max_json_bytes=len(head) - 1)
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 50_000}}
    large = json.dumps({"inputs": [tensor]}).encode()
    (got,) = parse(large + bytes(50_000), str(len(large)), max_json_bytes=len(large)).inputs
    assert isinstance(got.content, memoryview)
    assert len(got.content) == 50_000


def test_a_response_is_ascii_and_says_where_its_json_ends() -> None:
    label = np.array([b"ALL"], dtype=object)
    review = np.array([True])
    response = InferResponse(
        model_name="tiny",
        model_version="1.0.0",
        id="Ä\u2028",
        parameters={"labels": "ALL,HEM"},
        outputs=(
            InferOutput(TensorSpec("label", "BYTES", (-1,)), label, raw=True),
            InferOutput(TensorSpec("review", "BOOL", (-1,)), review, raw=False),
        ),
    )
    body, length = render(response)
    assert length is not None
    head = json.loads(body[:length].decode("ascii"))
    assert head["id"] == "Ä\u2028"
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 7}
    assert head["outputs"][1]["data"] == [True]
    assert body[length:] == b"\x03\x00\x00\x00ALL"
