"""The real server as a process of its own, with real cells, bad input, and its end."""

import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.models import NAME, VERSION, write_models
from tests.service.harness import ServerProcess, run_cli, samples
from training.data.drawn import cell_bytes

GIB = 1024**3
CELL = cell_bytes("HEM", seed=5)


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess(log, models_dir=models_dir, max_request_bytes=32_000_000) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client
        # Whatever the test sent, the server lives on and gives right answers.
        assert client.post("/predict", files={"file": ("cell.bmp", CELL)}).status_code == 200


def answer(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    predictions: list[dict[str, Any]] = response.json()["predictions"]
    return predictions


def check_equal_answers(server: ServerProcess, cells: list[tuple[str, bytes]]) -> None:
    with server.client() as client:

        def ask(cell: tuple[str, bytes]) -> dict[str, Any]:
            return answer(client.post("/predict", files={"file": cell}))[0]

        singly = [ask(cell) for cell in cells]
        together = answer(client.post("/predict", files=[("files", cell) for cell in cells]))
        raw = [
            answer(client.post("/predict", content=data, headers={"content-type": "image/bmp"}))[0]
            for _, data in cells[:2]
        ]
        with ThreadPoolExecutor(16) as pool:
            at_once = list(pool.map(ask, cells * 3))
    assert together == singly
    assert at_once == singly * 3
    assert [item | {"filename": None} for item in singly[:2]] == raw
    assert [item["filename"] for item in singly] == [name for name, _ in cells]


def test_drawn_cells_get_equal_answers_each_way(server: ServerProcess, drawn_cells: list[bytes]) -> None:
    check_equal_answers(server, [(f"{number}.bmp", data) for number, data in enumerate(drawn_cells)])


def test_real_cells_get_equal_answers_each_way(server: ServerProcess, real_cells: list[Path]) -> None:
    check_equal_answers(server, [(path.name, path.read_bytes()) for path in real_cells])


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"content": b"", "headers": {"content-type": "image/bmp"}}, 422),
        ({"content": b""}, 415),
        ({"content": b"text", "headers": {"content-type": "text/plain"}}, 415),
        ({"files": {"file": ("notes.txt", b"text")}}, 422),
        ({"files": {"file": ("cell.bmp", CELL[: len(CELL) // 2])}}, 422),
        ({"files": {"file": ("cell.bmp", b"")}}, 422),
        ({"files": {"picture": ("cell.bmp", CELL)}}, 400),
        ({"content": CELL, "headers": {"content-type": "image/gif"}}, 415),
        ({"files": [("files", ("cell.bmp", CELL))] * 60}, 413),
    ],
)
def test_bad_input(client: httpx.Client, arguments: dict[str, Any], status: int) -> None:
    response = client.post("/predict", **arguments)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize(("path", "status"), [("/predict", 413), ("/nope", 404)])
def test_a_gibibyte_is_refused_and_the_refusal_arrives(
    client: httpx.Client, chunked: bool, path: str, status: int
) -> None:
    def stream() -> Iterator[bytes]:
        chunk = bytes(1024 * 1024)
        for _ in range(GIB // len(chunk)):
            yield chunk

    headers = {"content-type": "application/octet-stream"}
    if not chunked:
        headers["content-length"] = str(GIB)
    response = client.post(path, content=stream(), headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc", b""]
)
def test_a_client_that_breaks_off(server: ServerProcess, client: httpx.Client, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(data)
    assert client.get("/readyz").status_code == 200


def test_metrics_and_headers(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert samples(response.text)["leukoscope_queue_depth"] == 0
    assert "server" not in response.headers
    assert re.fullmatch(r"[0-9A-Z]{26}", response.headers["x-request-id"])


def test_nothing_broke_on_the_way(server: ServerProcess) -> None:
    assert "Traceback" not in server.log()
    assert "ERROR" not in server.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(models_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    with ServerProcess(tmp_path / "log", models_dir=models_dir) as server:
        assert f"Leukoscope is ready on {server.url} ({NAME}@{VERSION} on CPUExecutionProvider)" in server.log()
        assert server.stop(number) == 0
        assert "Traceback" not in server.log()
        assert "Error" not in server.log()


def test_a_model_that_cannot_be_served(tmp_path: Path) -> None:
    write_models(tmp_path)
    (tmp_path / NAME / VERSION / "model.onnx").write_bytes(b"changed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = run_cli("serve", models_dir=tmp_path, port=port)
    assert result.returncode == 1
    assert result.stderr.startswith("leukoscope: can't start: ")
    assert result.stderr.count("\n") == 1


def test_a_port_in_use(models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run_cli("serve", models_dir=models_dir, port=taken.getsockname()[1])
    assert result.returncode == 1
    assert "Address already in use" in result.stderr
    assert "LEUKOSCOPE_PORT" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"port": 0}, "LEUKOSCOPE_PORT=0: "),
        ({"prot": 1}, "LEUKOSCOPE_PROT is not a setting (did you mean LEUKOSCOPE_PORT?)"),
    ],
)
def test_bad_settings(settings: dict[str, object], words: str) -> None:
    result = run_cli("serve", **settings)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_every_setting() -> None:
    result = run_cli("serve", "--help")
    assert result.returncode == 0
    assert "LEUKOSCOPE_MAX_BATCH (default 0; 0..256)" in result.stdout
    assert "LEUKOSCOPE_DEVICE (default auto; auto|cpu|cuda)" in result.stdout


def test_models_command(tmp_path: Path) -> None:
    write_models(tmp_path)
    write_models(tmp_path, version="2.0.0", active=False)
    (tmp_path / NAME / "2.0.0" / "report.json").unlink()
    result = run_cli("models", models_dir=tmp_path)
    assert result.returncode == 0
    active, other = result.stdout.splitlines()
    assert active == f"* {NAME}  {VERSION}  verified"
    assert "report.json" in other
    assert run_cli("models", models_dir=tmp_path / "nowhere").returncode == 1
