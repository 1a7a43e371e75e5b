"""Limits on what comes in, and the headers on what goes out, over real sockets where HTTP itself matters."""

import base64
import hashlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.service.harness import ServerProcess, make_settings, running
from tests.service.test_app import check_problem
from training.data.drawn import cell_bytes

CELL = cell_bytes("HEM", seed=5)
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/bmp\r\n"
RAW = {"content-type": "image/bmp"}


@pytest.fixture(scope="module")
def server(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("limits") / "log"
    with ServerProcess(
        log,
        models_dir=models_dir,
        header_timeout_s=0.5,
        max_header_bytes=8192,
        request_timeout_s=1,
        upload_timeout_s=3,
        min_upload_bytes_per_s=1000,
    ) as process:
        yield process
        with process.client() as client:
            assert client.post("/predict", files={"file": ("cell.bmp", CELL)}).status_code == 200
        assert "Traceback" not in process.log(), process.log()


def talk(server: ServerProcess, *pieces: bytes, pause_s: float = 0, until: bytes | None = None) -> tuple[bytes, float]:
    """Send pieces with pauses, then read until some bytes or the end; return what came and how long it took."""
    began_s = time.monotonic()
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
        except OSError:
            pass  # cut off already
        try:
            while (until is None or until not in answer) and (data := connection.recv(65536)):
                answer += data
        except ConnectionResetError:
            pass
    return answer, time.monotonic() - began_s


def problem_of(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    problem: dict[str, object] = json.loads(body)
    assert f"X-Request-ID: {problem['request_id']}".encode().lower() in head.lower()
    return problem


@pytest.mark.parametrize("piece", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", b"\r\n"])
def test_slow_headers_are_cut_off(server: ServerProcess, piece: bytes) -> None:
    answer, elapsed_s = talk(server, piece)
    assert problem_of(answer)["status"] == 408
    assert elapsed_s < 10


def test_headers_byte_by_byte_are_cut_off(server: ServerProcess) -> None:
    answer, _ = talk(server, b"GET /livez HTTP/1.1\r\n", *[b"X-A: b\r\n"] * 40, pause_s=0.05)
    assert b" 408 " in answer.splitlines()[0]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 300_000,
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-Many: a\r\n" * 30_000,
        b"GET /" + b"a" * 300_000,
    ],
)
def test_long_headers_are_refused(server: ServerProcess, request_bytes: bytes) -> None:
    answer, _ = talk(server, request_bytes)
    assert problem_of(answer)["status"] == 431


@pytest.mark.parametrize(
    "flood",
    [
        b"1;" + b"x" * 300_000,  # a chunk's extension
        b"1\r\nB\r\n0\r\n" + b"X-Trailer: a\r\n" * 30_000,
    ],
)
def test_floods_that_are_no_body_are_cut_off(server: ServerProcess, flood: bytes) -> None:
    _, elapsed_s = talk(server, POST + b"Transfer-Encoding: chunked\r\n\r\n" + flood)
    assert elapsed_s < 10


def test_one_byte_chunks_are_no_flood(server: ServerProcess) -> None:
    body = b"".join(b"1\r\nx\r\n" for _ in range(20_000)) + b"0\r\n\r\n"
    answer, _ = talk(server, POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert b" 422 " in answer.splitlines()[0]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # the start of TLS
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_a_plain_400(server: ServerProcess, request_bytes: bytes) -> None:
    answer, _ = talk(server, request_bytes)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer
    assert b"uvicorn" not in answer.lower()
    assert b"Traceback" not in answer


def test_a_drip_is_cut_off(server: ServerProcess) -> None:
    answer, elapsed_s = talk(server, POST + b"Content-Length: 100000\r\n\r\n", *[b"x"] * 60, pause_s=0.05, until=b"}")
    assert b" 504 " in answer.splitlines()[0]
    assert elapsed_s < 20


def test_an_upload_that_never_ends_is_cut_off_at_its_deadline(server: ServerProcess) -> None:
    pieces = [b"x" * 400] * 300  # fast enough, but 15 seconds long
    answer, elapsed_s = talk(server, POST + b"Content-Length: 10000000\r\n\r\n", *pieces, pause_s=0.05, until=b"}")
    assert b"was not read within 3 s" in answer
    assert elapsed_s < 40


def test_a_fast_start_buys_no_slow_end(server: ServerProcess) -> None:
    answer, _ = talk(server, POST + b"Content-Length: 900000\r\n\r\n" + CELL[:300_000], until=b"}")
    assert b" 504 " in answer.splitlines()[0]


def test_a_client_that_does_not_read_is_cut_off(server: ServerProcess) -> None:
    script = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(script * 8)  # far more than the buffers of both sides hold
        time.sleep(4)
        answer = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(1_000_000):
                answer += data
    length = int(re.search(rb"content-length: (\d+)", answer)[1])  # type: ignore[index]
    assert len(answer) < 8 * length


def test_an_idle_connection_is_closed(server: ServerProcess) -> None:
    answer, elapsed_s = talk(server, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert elapsed_s < 15


def test_two_requests_at_once_on_one_connection(server: ServerProcess) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    answer, _ = talk(server, request + request.replace(b"Host", b"Connection: close\r\nHost"))
    assert answer.count(b"HTTP/1.1 200") == 2


@pytest.mark.anyio
async def test_bytes_of_all_requests_together_are_bounded(models_dir: Path) -> None:
    settings = make_settings(models_dir, max_request_bytes=1_000_000, queue_limit_bytes=1_000_000)
    async with running(settings) as (_, client):

        async def first() -> AsyncIterator[bytes]:
            yield CELL[:100_000]
            response = await client.post("/predict", content=bytes(950_000), headers=RAW)
            check_problem(response, 429, "queue-full")
            assert int(response.headers["retry-after"]) >= 1
            yield CELL[100_000:]

        assert (await client.post("/predict", content=first(), headers=RAW)).status_code == 200
        # Both have given back what they held.
        assert (await client.post("/predict", content=CELL, headers=RAW)).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("announced", ["9" * 18, "9" * 200, "0", "x"])
async def test_an_announced_length_is_only_a_word(models_dir: Path, announced: str) -> None:
    async with running(make_settings(models_dir, max_request_bytes=700_000)) as (_, client):
        response = await client.post("/predict", content=bytes(800_000), headers=RAW | {"content-length": announced})
        check_problem(response, 413, "body-too-large")


@pytest.mark.anyio
async def test_a_body_that_is_read_before_the_key_is_asked_for_is_small(models_dir: Path) -> None:
    async with running(make_settings(models_dir)) as (_, client):

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 10_000
            raise AssertionError("all of it was read")

        response = await client.put("/models/active", content=endless(), headers={"content-type": "application/json"})
        check_problem(response, 413, "body-too-large")


@pytest.mark.parametrize("path", ["/livez", "/predict", "/models", "/nope", "/metrics", "/openapi.json"])
def test_every_answer_has_security_headers(server: ServerProcess, path: str) -> None:
    with server.client() as client:
        headers = client.get(path, headers={"Origin": "https://elsewhere.example"}).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; ")
    for word in ("connect-src 'self'", "form-action 'none'", "base-uri 'none'", "frame-ancestors 'none'"):
        assert word in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    assert headers["cache-control"] == "no-store"
    assert not {"server", "x-powered-by", "access-control-allow-origin"} & set(headers)


def test_the_docs_run_only_their_own_script(server: ServerProcess) -> None:
    with server.client() as client:
        page = client.get("/docs")
        scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
        for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
            assert client.get(address).status_code == 200
    assert scripts
    policy = page.headers["content-security-policy"]
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]


def test_other_origins_are_not_let_in(server: ServerProcess) -> None:
    with server.client() as client:
        asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
        response = client.options("/predict", headers=asked)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_answers_tell_no_paths_and_no_versions(server: ServerProcess, models_dir: Path) -> None:
    answers = []
    with server.client() as client:
        for method, path in (
            ("GET", "/nope"),
            ("PUT", "/predict"),
            ("GET", "/models/..%2f..%2fetc"),
            ("GET", "/readyz"),
        ):
            answers.append(client.request(method, path))
        answers.append(client.post("/predict", content=b"\x00", headers=RAW))
        answers.append(client.post("/predict", files={"file": ("../../etc/passwd", b"BM" + bytes(60))}))
    for answer in answers:
        text = answer.text + str(answer.headers)
        for word in (str(models_dir), "site-packages", "Traceback", ".py", "PIL", "Pillow", "uvicorn", "Starlette"):
            assert word not in text, answer.url


@pytest.mark.anyio
async def test_headers_are_on_internal_errors_too(models_dir: Path) -> None:
    async with running(make_settings(models_dir)) as (app, client):

        async def broken() -> None:
            raise RuntimeError("secret")

        app.add_api_route("/broken", broken)
        response: httpx.Response = await client.get("/broken")
        check_problem(response, 500, "internal-error")
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "secret" not in response.text
