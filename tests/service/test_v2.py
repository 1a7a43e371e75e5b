"""`/v2` in this process: metadata, inference in JSON and in binary, and each refusal as the protocol wants it."""

import asyncio
import base64
import io
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from app.core import imaging
from app.inference.engine import State
from app.v2.http_body import LENGTH_HEADER
from tests.models import NAME, PREPROCESSING, SIZE_PX, VERSION
from tests.service.harness import FakeSession, hanging_up, make_settings, running, samples, serve_with, services_of
from training.data.drawn import cell_bytes

pytestmark = pytest.mark.anyio

Service = tuple[FastAPI, httpx.AsyncClient]
INFER = f"/v2/models/{NAME}/infer"
CELLS = [cell_bytes("ALL", seed=0), cell_bytes("HEM", seed=3)]
OUTPUTS = ["probabilities", "logits", "label", "confidence", "review"]
FLOAT = {"probabilities", "logits", "confidence"}


@pytest.fixture
async def service(models_dir: Path) -> AsyncIterator[Service]:
    settings = make_settings(models_dir, max_images_per_request=4, max_request_bytes=8_000_000, max_json_bytes=900_000)
    async with running(settings) as both:
        yield both


@pytest.fixture
async def client(service: Service) -> httpx.AsyncClient:
    return service[1]


def pixels(cells: list[bytes] = CELLS) -> NDArray[np.uint8]:
    return np.stack([imaging.preprocess(imaging.decode(cell), PREPROCESSING) for cell in cells])


def as_png(cell: bytes) -> bytes:
    """The same pixels in fewer bytes."""
    buffer = io.BytesIO()
    imaging.decode(cell).save(buffer, "PNG")
    return buffer.getvalue()


def lengths_and_bytes(items: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def image_input(array: NDArray[np.uint8] | None = None, **changes: Any) -> dict[str, Any]:
    array = pixels() if array is None else array
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(array.shape)}
    return tensor | ({} if "parameters" in changes else {"data": array.ravel().tolist()}) | changes


def encoded_input(**changes: Any) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": "encoded", "datatype": "BYTES", "shape": [len(CELLS)]}
    return tensor | changes


def binary(message: dict[str, Any], raw: bytes) -> dict[str, Any]:
    """The arguments of a request with binary data behind its JSON."""
    head = json.dumps(message).encode()
    return {"content": head + raw, "headers": {LENGTH_HEADER: str(len(head))}}


def read(response: httpx.Response) -> dict[str, Any]:
    """Decode a response to plain lists, whichever way each output came."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH_HEADER)
    head = response.content if length is None else response.content[: int(length)]
    rest = b"" if length is None else response.content[int(length) :]
    body: dict[str, Any] = json.loads(head)
    outputs = {}
    for output in body["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = output["data"]
        else:
            raw, rest = rest[:size], rest[size:]
            values = decode(raw, output["datatype"])
        if output["name"] in FLOAT:
            values = np.array(values, np.float32).reshape(output["shape"]).tolist()
        outputs[output["name"]] = values
    assert rest == b""
    return body | {"outputs": outputs}


def decode(raw: bytes, datatype: str) -> list[Any]:
    if datatype == "BYTES":
        items = []
        while raw:
            (length,) = struct.unpack_from("<I", raw)
            items.append(raw[4 : 4 + length].decode())
            raw = raw[4 + length :]
        return items
    values: list[Any] = np.frombuffer(raw, {"FP32": "<f4", "BOOL": "?"}[datatype]).tolist()
    return values


def check_error(response: httpx.Response, status: int, *words: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    message: str = body["error"]
    for word in words:
        assert word in message
    return message


async def test_server_metadata_and_health(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v2")).json()
    assert (body["name"], body["extensions"]) == ("leukoscope", ["binary_tensor_data"])
    assert body["version"]
    assert (await client.get("/v2/health/live")).json() == {"live": True}
    assert (await client.get("/v2/health/ready")).json() == {"ready": True}


@pytest.mark.parametrize("path", [f"/v2/models/{NAME}", f"/v2/models/{NAME}/versions/{VERSION}"])
async def test_model_metadata(client: httpx.AsyncClient, path: str) -> None:
    body = (await client.get(path)).json()
    assert (body["name"], body["versions"], body["platform"]) == (NAME, [VERSION], "onnxruntime_onnx")
    assert body["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, SIZE_PX, SIZE_PX, 3]},
        {"name": "encoded", "datatype": "BYTES", "shape": [-1]},
    ]
    assert [(output["name"], output["datatype"], output["shape"]) for output in body["outputs"]] == [
        ("probabilities", "FP32", [-1, 2]),
        ("logits", "FP32", [-1, 2]),
        ("label", "BYTES", [-1]),
        ("confidence", "FP32", [-1]),
        ("review", "BOOL", [-1]),
    ]
    assert (await client.get(f"{path}/ready")).json() == {"ready": True, "name": NAME}


async def test_each_way_in_and_out_gives_the_answer_of_predict(client: httpx.AsyncClient) -> None:
    files = [("files", ("cell.bmp", cell)) for cell in CELLS]
    predicted = (await client.post("/predict", files=files)).json()["predictions"]
    array = pixels()
    raw = lengths_and_bytes(CELLS)
    sized = {"parameters": {"binary_data_size": len(raw)}}
    ways = [
        {"json": {"inputs": [image_input(array)]}},
        {"json": {"inputs": [image_input(array, data=array.tolist())]}},
        binary({"inputs": [image_input(array, parameters={"binary_data_size": array.nbytes})]}, array.tobytes()),
        binary({"inputs": [encoded_input(**sized)]}, raw),
    ]
    both = [{}, {"parameters": {"binary_data_output": True}}]
    answers = [read(await client.post(INFER, **with_members(way, choice))) for way in ways for choice in both]
    for cell, prediction in zip(CELLS, predicted, strict=True):
        text = base64.b64encode(cell).decode()
        one = {"inputs": [encoded_input(shape=[1], data=[text])]}
        outputs = read(await client.post(INFER, json=one))["outputs"]
        assert outputs["label"] == [prediction["label"]]
    for answer in answers:
        assert answer == answers[0]
    outputs = answers[0]["outputs"]
    assert list(outputs) == OUTPUTS
    assert outputs["label"] == [item["label"] for item in predicted]
    assert outputs["review"] == [item["review"] for item in predicted]
    assert outputs["confidence"] == [np.float32(item["confidence"]) for item in predicted]
    labels = answers[0]["parameters"]["labels"].split(",")
    assert outputs["probabilities"] == [
        [float(np.float32(item["probabilities"][label])) for label in labels] for item in predicted
    ]


def with_members(arguments: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    """Add members to a request's JSON."""
    if "json" in arguments:
        return {"json": arguments["json"] | members}
    length = int(arguments["headers"][LENGTH_HEADER])
    return binary(json.loads(arguments["content"][:length]) | members, arguments["content"][length:])


async def test_logits_are_the_models_own(service: Service) -> None:
    app, client = service
    array = pixels()
    expected = services_of(app).engine.serving().model.session.run(array).logits
    for members in ({}, {"parameters": {"binary_data_output": True}}):
        answer = read(await client.post(INFER, json={"inputs": [image_input(array)]} | members))
        assert np.array_equal(np.array(answer["outputs"]["logits"], np.float32), expected)


async def test_outputs_by_name_each_in_its_own_way(client: httpx.AsyncClient) -> None:
    outputs = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "confidence"},
        {"name": "review", "parameters": {"binary_data": False}},
    ]
    request = {"inputs": [image_input()], "outputs": outputs}
    response = await client.post(INFER, json=request)
    assert response.headers["content-type"] == "application/octet-stream"
    head = json.loads(response.content[: int(response.headers[LENGTH_HEADER])])
    assert [output["name"] for output in head["outputs"]] == ["label", "confidence", "review"]
    assert [("data" in output) for output in head["outputs"]] == [False, True, True]
    assert set(read(response)["outputs"]["label"]) <= {"ALL", "HEM"}
    response = await client.post(INFER, json=request | {"parameters": {"binary_data_output": True}})
    head = json.loads(response.content[: int(response.headers[LENGTH_HEADER])])
    assert [("data" in output) for output in head["outputs"]] == [False, False, True]


@pytest.mark.parametrize("request_id", ["", "lab-42", "Zelle Ä", "\ud800"])
async def test_the_id_is_echoed_and_what_is_not_known_tolerated(client: httpx.AsyncClient, request_id: str) -> None:
    request = {
        "id": request_id,
        "parameters": {"priority": 3, "timeout": None, "nested": {"a": [1]}},
        "inputs": [image_input(note="x", parameters={"content_type": "np"}, data=pixels().tolist())],
        "outputs": None,
        "extra": 1,
    }
    response = await client.post(INFER, content=json.dumps(request).encode())
    if request_id == "\ud800":
        check_error(response, 400, "malformed")
    else:
        assert read(response)["id"] == request_id
    assert "id" not in read(await client.post(INFER, json={"inputs": [image_input()]}))


NO_DATA = {"name": "image", "datatype": "UINT8", "shape": [1, SIZE_PX, SIZE_PX, 3]}
TEXT = base64.b64encode(b"no picture").decode()
GOOD = base64.b64encode(as_png(CELLS[0])).decode()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({}, ["inputs", "required"]),
        ([], ["malformed"]),
        ({"inputs": []}, ["expected exactly one", "'image' (UINT8 [-1, 48, 48, 3])", "'encoded' (BYTES [-1])"]),
        ({"inputs": [image_input(), encoded_input(data=[GOOD, GOOD])]}, ["exactly one"]),
        ({"inputs": [image_input(), image_input()]}, ["exactly one"]),
        ({"inputs": [image_input(name="picture")]}, ["'picture'", "'image'"]),
        ({"inputs": [image_input(name="x" * 5000)]}, ["exactly one"]),
        ({"inputs": [image_input(datatype="FP32")]}, ["'FP32'", "'UINT8'"]),
        ({"inputs": [image_input(shape=[2, 48, 48])]}, ["shape", "[-1, 48, 48, 3]"]),
        ({"inputs": [image_input(shape=[3, 48, 48, 3])]}, ["13,824 elements", "needs 20,736"]),
        ({"inputs": [image_input(shape=[0, 48, 48, 3], data=[])]}, ["no picture"]),
        ({"inputs": [image_input(shape=[-1, 48, 48, 3])]}, ["[-1, 48, 48, 3]"]),
        ({"inputs": [image_input(shape="2")]}, ["inputs.0.shape"]),
        ({"inputs": [image_input(shape=[2.0, 48, 48, 3])]}, ["inputs.0.shape"]),
        ({"inputs": [image_input(data=[256] * 13_824)]}, ["0..255"]),
        ({"inputs": [image_input(data="AAAA")]}, ["inputs.0.data"]),
        ({"inputs": [NO_DATA]}, ["'image'", "data", "binary_data_size"]),
        ({"inputs": [image_input(parameters={"binary_data_size": -1})]}, ["binary_data_size"]),
        ({"inputs": [image_input(parameters={"binary_data_size": 6912})]}, ["6,912", "0 bytes follow"]),
        ({"inputs": [NO_DATA | {"parameters": {"shared_memory_region": "r"}}]}, ["shared_memory_region"]),
        ({"inputs": [image_input()], "outputs": [{"name": "label", "parameters": {"classification": 2}}]}, ["classif"]),
        ({"inputs": [image_input()], "outputs": [{"name": "heat"}]}, ["'heat'", "probabilities, logits"]),
        ({"inputs": [image_input()], "outputs": [{"name": "label"}, {"name": "label"}]}, ["twice"]),
        ({"inputs": [image_input()], "outputs": ["label"]}, ["outputs.0"]),
        ({"inputs": [image_input()], "id": 7}, ["id"]),
        ({"inputs": [encoded_input(data=[GOOD, "%%%"])]}, ["Picture 1", "base64"]),
        ({"inputs": [encoded_input(shape=[3], data=[GOOD, TEXT, GOOD])]}, ["Picture 1 of 3", "can be read"]),
        ({"inputs": [encoded_input(shape=[1], data=[7])]}, ["text"]),
        ({"inputs": [encoded_input(shape=[1], data=[[GOOD]])]}, ["text"]),
        ({"inputs": [encoded_input(shape=[1], data=[GOOD, GOOD])]}, ["2 elements", "needs 1"]),
        ({"inputs": [encoded_input(shape=[1, 1], data=[GOOD])]}, ["[1, 1]", "[-1]"]),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(client: httpx.AsyncClient, message: Any, words: list[str]) -> None:
    text = check_error(await client.post(INFER, json=message), 400, *words)
    assert len(text) < 500


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b'{"inputs": ' + b"[" * 100_000, None),
        (b"null", None),
        (b'{"inputs": [' + b"9" * 10_000 + b"]}", None),
        (b'{"inputs": []}', b"99"),
        (b'{"inputs": []}', b"-1"),
        (b'{"inputs": []}', b"1.5"),
        (b'{"inputs": []}', b"9" * 5000),
        (b'{"inputs": []}', "\u0661".encode()),
        (b'{"inputs": []}', b"0"),
        (b'{"inputs": []}more', b"14"),
    ],
)
async def test_bodies_that_are_no_request(client: httpx.AsyncClient, content: bytes, length: bytes | None) -> None:
    headers = [] if length is None else [(LENGTH_HEADER.encode(), length)]
    check_error(await client.post(INFER, content=content, headers=headers), 400)


@pytest.mark.parametrize(
    ("raw", "size", "words"),
    [
        (pixels().tobytes()[:-1], None, ["13,823 bytes", "needs 13,824"]),
        (pixels().tobytes(), 13_823, ["13,823 bytes", "13,824 bytes follow"]),
        (pixels().tobytes(), 2**70, ["binary_data_size"]),
        (pixels().tobytes(), 2**62, ["13,824 bytes follow"]),
    ],
)
async def test_wrong_binary_sizes(client: httpx.AsyncClient, raw: bytes, size: int | None, words: list[str]) -> None:
    tensor = image_input(parameters={"binary_data_size": len(raw) if size is None else size})
    check_error(await client.post(INFER, **binary({"inputs": [tensor]}, raw)), 400, *words)


async def test_limits(client: httpx.AsyncClient) -> None:
    many = np.zeros((5, SIZE_PX, SIZE_PX, 3), np.uint8)
    tensor = image_input(many, parameters={"binary_data_size": many.nbytes})
    check_error(await client.post(INFER, **binary({"inputs": [tensor]}, many.tobytes())), 413, "5 pictures", "4")
    check_error(await client.post(INFER, json={"inputs": [image_input(shape=[10**30, 48, 48, 3])]}), 413, "pictures")
    check_error(await client.post(INFER, content=bytes(8_000_001)), 413, "8,000,000 bytes")
    check_error(await client.post(INFER, content=b" " * 900_001), 413, "900,001 bytes of JSON", "binary_data_size")
    compressed = await client.post(INFER, content=b"x", headers={"content-encoding": "gzip"})
    check_error(compressed, 415, "Content-Encoding")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nope", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", f"/v2/models/{NAME}/versions/9.9.9", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", f"/v2/models/{NAME}/versions/9.9.9/infer", 404),
        ("GET", INFER, 405),
        ("POST", "/v2/health/live", 405),
    ],
)
async def test_wrong_addresses(client: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    check_error(await client.request(method, path), status)


async def test_full_queue_and_failing_model(service: Service) -> None:
    app, client = service
    session = FakeSession()
    session.gate.clear()
    serve_with(app, session, queue_limit=3)
    request = {"inputs": [image_input()]}
    waiting = asyncio.create_task(client.post(INFER, json=request))
    await session.has_begun()
    response = await client.post(INFER, json=request)
    check_error(response, 429)
    assert int(response.headers["retry-after"]) >= 1
    session.gate.set()
    assert (await waiting).status_code == 200
    session.broken = True
    message = check_error(await client.post(INFER, json=request), 500)
    assert "secret" not in message
    metrics = samples((await client.get("/metrics")).text)
    assert metrics['leukoscope_rejected_total{reason="queue-full"}'] == 1
    assert metrics["leukoscope_queue_depth"] == 0


async def test_what_nobody_expected_has_no_internals(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    app, client = service

    async def broken(*_: object) -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(type(services_of(app).engine.serving().classifier), "answer", broken)
    assert "secret" not in check_error(await client.post(INFER, json={"inputs": [image_input()]}), 500)


async def test_deadline(models_dir: Path) -> None:
    async with running(make_settings(models_dir, request_timeout_s=0.6)) as (app, client):
        session = FakeSession()
        session.gate.clear()
        serve_with(app, session)
        request = {"inputs": [image_input()]}
        check_error(await client.post(INFER, json=request), 504, "0.6 s")
        hurry = {"X-Request-Timeout": "0.1"}
        check_error(await client.post(INFER, json=request, headers=hurry), 504, "X-Request-Timeout")
        check_error(await client.post(INFER, json=request, headers={"X-Request-Timeout": "soon"}), 400, "timeout")
        session.gate.set()


async def test_a_client_that_hangs_up_is_given_up(service: Service) -> None:
    app, client = service
    session = FakeSession(max_batch=1)
    session.gate.clear()
    serve_with(app, session)
    body = json.dumps({"inputs": [image_input()]}).encode()
    sent = await hanging_up(app, session, INFER, body, [])
    session.gate.set()
    metrics = samples((await client.get("/metrics")).text)
    assert sent == []
    assert metrics["leukoscope_cancelled_total"] == 2
    assert metrics["leukoscope_queue_depth"] == 0


@pytest.mark.parametrize("state", [State.STARTING, State.DRAINING, State.FAILED])
async def test_what_is_not_ready_says_so(service: Service, state: State) -> None:
    app, client = service
    engine = services_of(app).engine
    engine._state, engine._reason = state, "because"
    for path in ("/v2/health/ready", f"/v2/models/{NAME}/ready"):
        response = await client.get(path)
        check_error(response, 503, "because")
        assert response.headers["retry-after"]
    response = await client.post(INFER, json={"inputs": [image_input()]})
    if state is State.DRAINING:  # what has found its way here is still answered
        assert response.status_code == 200
    else:
        check_error(response, 503, "because")
    assert (await client.get("/v2/health/live")).status_code == 200


async def test_openapi_has_the_protocols_errors(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert {"400", "404", "413", "429", "500", "503", "504"} <= infer["responses"].keys()
    assert infer["responses"]["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/V2Error")
