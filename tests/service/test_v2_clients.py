"""Triton's own clients against the real server: HTTP and gRPC, each way in and out, many at once, and errors."""

import base64
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from app.core import imaging
from tests.models import NAME, PREPROCESSING, SIZE_PX, VERSION
from tests.service.harness import ROOT, ServerProcess, free_port, run_cli

OUTPUTS = ["probabilities", "logits", "label", "confidence", "review"]
MAX_IMAGES = 40


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server") / "log"
    settings: dict[str, Any] = {
        "max_request_bytes": 16_000_000,
        "max_images_per_request": MAX_IMAGES,
        "grpc_port": free_port(),
    }
    with ServerProcess(log, models_dir=models_dir, **settings) as process:
        yield process


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[Any]:
    client = http_client.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=8)
    yield client
    client.close()


@pytest.fixture(scope="module")
def grpc(server: ServerProcess) -> Iterator[Any]:
    client = grpc_client.InferenceServerClient(f"127.0.0.1:{server.settings['grpc_port']}")
    yield client
    client.close()


@pytest.fixture(params=["http", "grpc"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A client and its module: what is asked of either is asked in the same words."""
    module = {"http": http_client, "grpc": grpc_client}[request.param]
    return request.getfixturevalue(request.param), module


def preprocessed(cells: list[bytes]) -> NDArray[np.uint8]:
    return np.stack([imaging.preprocess(imaging.decode(cell), PREPROCESSING) for cell in cells])


def image_input(module: Any, array: NDArray[np.uint8], **options: Any) -> Any:
    return module.InferInput("image", list(array.shape), "UINT8").set_data_from_numpy(array, **options)


def encoded_input(module: Any, cells: list[bytes], **options: Any) -> Any:
    array = np.array(cells, dtype=object)
    return module.InferInput("encoded", [len(cells)], "BYTES").set_data_from_numpy(array, **options)


def arrays(result: Any) -> dict[str, list[Any]]:
    return {name: result.as_numpy(name).tolist() for name in OUTPUTS}


def predicted(server: ServerProcess, cells: list[bytes]) -> dict[str, list[Any]]:
    """What `/predict` says of the pictures, as V2 outputs; it has no logits."""
    with server.client() as client:
        files = [("files", ("cell.bmp", cell)) for cell in cells]
        items = client.post("/predict", files=files).raise_for_status().json()["predictions"]
    probabilities = [[item["probabilities"][label] for label in ("ALL", "HEM")] for item in items]
    return {
        "probabilities": np.array(probabilities, np.float32).tolist(),
        "label": [item["label"].encode() for item in items],
        "confidence": np.array([item["confidence"] for item in items], np.float32).tolist(),
        "review": [item["review"] for item in items],
    }


def test_server(both: tuple[Any, Any]) -> None:
    client, module = both
    assert client.is_server_live()
    assert client.is_server_ready()
    options = {"as_json": True} if module is grpc_client else {}
    metadata = client.get_server_metadata(**options)
    assert (metadata["name"], metadata["extensions"]) == ("leukoscope", ["binary_tensor_data"])


def test_model(both: tuple[Any, Any]) -> None:
    client, module = both
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, VERSION)
    options = {"as_json": True} if module is grpc_client else {}
    metadata = client.get_model_metadata(NAME, VERSION, **options)
    assert (metadata["name"], metadata["versions"]) == (NAME, [VERSION])
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "encoded"]
    assert [int(side) for side in metadata["inputs"][0]["shape"]] == [-1, SIZE_PX, SIZE_PX, 3]
    assert [tensor["name"] for tensor in metadata["outputs"]] == OUTPUTS
    assert [tensor["datatype"] for tensor in metadata["outputs"]] == ["FP32", "FP32", "BYTES", "FP32", "BOOL"]


def test_answers_are_those_of_predict(server: ServerProcess, both: tuple[Any, Any], drawn_cells: list[bytes]) -> None:
    client, module = both
    expected = predicted(server, drawn_cells)
    by_file = client.infer(NAME, [encoded_input(module, drawn_cells)], request_id="lab-42")
    by_pixels = client.infer(NAME, [image_input(module, preprocessed(drawn_cells))], VERSION)
    answer = arrays(by_file)
    assert answer == arrays(by_pixels)
    assert answer == expected | {"logits": answer["logits"]}
    response = by_file.get_response()
    if module is http_client:
        assert (response["id"], response["model_version"]) == ("lab-42", VERSION)
        assert response["parameters"] == {"labels": "ALL,HEM"}
    else:
        assert (response.id, response.model_version) == ("lab-42", VERSION)
        assert response.parameters["labels"].string_param == "ALL,HEM"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_json_and_binary_both_ways(http: Any, drawn_cells: list[bytes], binary_in: bool, binary_out: bool) -> None:
    cells = drawn_cells[:3]
    expected = arrays(http.infer(NAME, [encoded_input(http_client, cells)]))
    outputs = [http_client.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    if not binary_out:
        expected["label"] = [label.decode() for label in expected["label"]]
    files = cells if binary_in else [base64.b64encode(cell) for cell in cells]
    for tensor in (
        image_input(http_client, preprocessed(cells), binary_data=binary_in),
        encoded_input(http_client, files, binary_data=binary_in),
    ):
        got = arrays(http.infer(NAME, [tensor], outputs=outputs))
        got["label"] = [item if binary_out or isinstance(item, str) else item.decode() for item in got["label"]]
        assert got == expected


def test_typed_contents_over_grpc(grpc: Any, drawn_cells: list[bytes]) -> None:
    array = preprocessed(drawn_cells[:2])
    expected = arrays(grpc.infer(NAME, [image_input(grpc_client, array)]))
    request = grpc_client.service_pb2.ModelInferRequest(model_name=NAME, id="typed")
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=array.shape)
    tensor.contents.uint_contents.extend(array.ravel().tolist())
    by_pixels = grpc._client_stub.ModelInfer(request)
    del request.inputs[:]
    tensor = request.inputs.add(name="encoded", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend(drawn_cells[:2])
    for response in (by_pixels, grpc._client_stub.ModelInfer(request)):
        contents = {output.name: output.contents for output in response.outputs}
        assert response.id == "typed"
        assert not response.raw_output_contents
        assert list(contents["label"].bytes_contents) == expected["label"]
        assert np.array(contents["logits"].fp32_contents).reshape(2, 2).tolist() == expected["logits"]
        assert list(contents["review"].bool_contents) == expected["review"]


def test_many_at_once_over_http(http: Any, drawn_cells: list[bytes]) -> None:
    inputs = [[encoded_input(http_client, [cell])] for cell in drawn_cells]
    expected = [arrays(http.infer(NAME, tensors)) for tensors in inputs]
    pending = [http.async_infer(NAME, tensors) for tensors in inputs * 5]
    assert [arrays(request.get_result()) for request in pending] == expected * 5


def test_many_at_once_over_grpc(grpc: Any, drawn_cells: list[bytes]) -> None:
    def begin(tensors: list[Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def done(result: Any, error: Any) -> None:
            future.set_exception(error) if error else future.set_result(result)

        grpc.async_infer(NAME, tensors, done)
        return future

    inputs = [[encoded_input(grpc_client, [cell])] for cell in drawn_cells]
    expected = [arrays(grpc.infer(NAME, tensors)) for tensors in inputs]
    pending = [begin(tensors) for tensors in inputs * 5]
    assert [arrays(future.result(timeout=60)) for future in pending] == expected * 5


def refusal(both: tuple[Any, Any], inputs: list[Any], model: str = NAME, **options: Any) -> tuple[str, str]:
    client, _ = both
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs, **options)
    return str(caught.value.status()), str(caught.value.message())


BAD_REQUEST = {"400", "StatusCode.INVALID_ARGUMENT"}
NOT_FOUND = {"404", "StatusCode.NOT_FOUND"}


def test_errors_say_what_is_wrong(both: tuple[Any, Any], drawn_cells: list[bytes]) -> None:
    _, module = both
    array = preprocessed(drawn_cells[:1])
    good = encoded_input(module, drawn_cells[:1])

    status, message = refusal(both, [good], "other")
    assert status in NOT_FOUND
    assert "'other'" in message
    status, message = refusal(both, [good], model_version="9.9.9")
    assert status in NOT_FOUND
    status, message = refusal(both, [encoded_input(module, [drawn_cells[0], b"text"])])
    assert status in BAD_REQUEST
    assert "Picture 1 of 2" in message
    status, message = refusal(both, [image_input(module, array[:, :20])])
    assert status in BAD_REQUEST
    assert "expected [-1, 48, 48, 3]" in message
    status, message = refusal(both, [good, image_input(module, array)])
    assert status in BAD_REQUEST
    assert "exactly one" in message
    status, message = refusal(both, [good], outputs=[module.InferRequestedOutput("heat")])
    assert status in BAD_REQUEST
    assert "'heat'" in message
    floats = module.InferInput("image", list(array.shape), "FP32").set_data_from_numpy(array.astype(np.float32))
    status, message = refusal(both, [floats])
    assert status in BAD_REQUEST
    assert "'FP32'" in message
    shared = module.InferInput("image", list(array.shape), "UINT8").set_shared_memory("region", array.nbytes)
    status, message = refusal(both, [shared])
    assert status in BAD_REQUEST
    assert "shared_memory_region" in message


def test_limits(both: tuple[Any, Any]) -> None:
    _, module = both
    status, message = refusal(both, [encoded_input(module, [b"x"] * (MAX_IMAGES + 1))])
    assert status in {"413", "StatusCode.INVALID_ARGUMENT"}
    assert str(MAX_IMAGES) in message
    status, _ = refusal(both, [encoded_input(module, [bytes(17_000_000)])])
    assert status in {"413", "StatusCode.RESOURCE_EXHAUSTED"}


def test_what_grpc_does_not_have_is_unimplemented(grpc: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        grpc.get_model_config(NAME)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    request = grpc_client.service_pb2.ModelInferRequest(model_name=NAME, raw_input_contents=[b"", b""])
    request.inputs.add(name="image", datatype="UINT8", shape=[1])
    with pytest.raises(Exception, match="2 raw_input_contents for 1 inputs"):
        grpc._client_stub.ModelInfer(request)


@pytest.mark.parametrize("port", [8000, 8001])
def test_the_documents_examples(server: ServerProcess, drawn_cells: list[bytes], tmp_path: Path, port: int) -> None:
    document = (ROOT / "docs" / "v2.md").read_text(encoding="utf-8")
    (script,) = [code for code in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if f":{port}" in code]
    for name, cell in zip(("cell_1.bmp", "cell_2.png"), drawn_cells, strict=False):
        (tmp_path / name).write_bytes(cell)
    own = {8000: server.port, 8001: server.settings["grpc_port"]}[port]
    script = script.replace(f":{port}", f":{own}").replace("efficientnet-b3", NAME)
    result = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert "ALL" in result.stdout
    assert "HEM" in result.stdout


def test_nothing_broke_on_the_way(server: ServerProcess) -> None:
    with server.client() as client:
        assert client.get("/v2/health/ready").status_code == 200
    assert "Traceback" not in server.log()
    assert "ERROR" not in server.log()


def test_a_grpc_port_in_use(models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run_cli("serve", models_dir=models_dir, port=free_port(), grpc_port=taken.getsockname()[1])
    assert result.returncode == 1
    assert "LEUKOSCOPE_GRPC_PORT" in result.stderr
    assert "Traceback" not in result.stderr
