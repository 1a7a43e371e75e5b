"""The nginx example, run by a real nginx before two real servers."""

import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deploy.queries import DEPLOY
from tests.service.harness import ServerProcess, free_port
from training.data.drawn import cell_bytes

CELL = {"file": ("cell.bmp", cell_bytes("ALL", seed=0))}
NAME = "leukoscope.example.org"


@dataclass(frozen=True)
class Proxy:
    port: int
    plain_port: int
    certificate: Path
    backends: tuple[ServerProcess, ServerProcess]

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = False  # it is asked by its address
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=context, timeout=30)


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def configuration(folder: Path, port: int, plain_port: int, backends: tuple[ServerProcess, ServerProcess]) -> str:
    """The example as published, but for what a site changes too: addresses, the certificate, sizes and times."""
    text = (DEPLOY / "nginx" / "leukoscope.conf").read_text(encoding="utf-8")
    first, second = (f"server 127.0.0.1:{backend.port} max_fails=1 fail_timeout=5s;" for backend in backends)
    for old, new in (
        ("server 127.0.0.1:8000 max_fails=1 fail_timeout=5s;", f"{first} {second}"),
        ("listen 80;", f"listen 127.0.0.1:{plain_port};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/ssl/leukoscope", str(folder)),
        ("client_header_timeout 10s;", "client_header_timeout 1s;"),
        ("client_max_body_size  256m;", "client_max_body_size  2m;"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"pid {folder}/pid; error_log {folder}/error.log warn; daemon off; worker_processes 1;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{text}\n}}\n"
    )


@pytest.fixture(scope="module")
def proxy(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    nginx, openssl = program("nginx"), program("openssl")
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    subprocess.run(  # noqa: S603 - found on PATH
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}",
         "-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    with (
        ServerProcess(folder / "first", models_dir=models_dir) as first,
        ServerProcess(folder / "second", models_dir=models_dir) as second,
    ):
        port, plain_port = free_port(), free_port()
        (folder / "nginx.conf").write_text(configuration(folder, port, plain_port, (first, second)), encoding="utf-8")
        command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)  # noqa: S603 - as above
        assert tested.returncode == 0, tested.stderr
        assert "[warn]" not in tested.stderr.replace('[warn] the "user" directive', "")
        process = subprocess.Popen(command)  # noqa: S603 - as above
        try:
            wait_for(port)
            yield Proxy(port, plain_port, folder / "fullchain.pem", (first, second))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)


def wait_for(port: int) -> None:
    deadline_s = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def test_cells_are_answered_over_tls(proxy: Proxy) -> None:
    with proxy.client() as client:
        answer = client.post("/predict", files=CELL)
        assert answer.status_code == 200
        assert re.fullmatch(r"[0-9a-f]{32}", answer.json()["request_id"])  # nginx's own, so that both logs have it
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "/" not in answer.headers["server"]  # no version
        assert client.get("/docs").status_code == 200


def test_plain_http_is_sent_to_tls(proxy: Proxy) -> None:
    answer = httpx.get(f"http://127.0.0.1:{proxy.plain_port}/predict", headers={"Host": NAME})
    assert answer.status_code == 301
    assert answer.headers["location"] == f"https://{NAME}/predict"


def test_metrics_are_not_published(proxy: Proxy) -> None:
    with proxy.client() as client:
        assert client.get("/metrics").status_code == 404
    assert httpx.get(f"{proxy.backends[0].url}/metrics").status_code == 200


def test_too_much_is_refused_at_the_edge(proxy: Proxy) -> None:
    with proxy.client() as client:
        assert client.post("/predict", content=bytes(3_000_000)).status_code == 413


def test_slow_headers_are_cut_off(proxy: Proxy) -> None:
    context = ssl.create_default_context(cafile=proxy.certificate)
    began_s = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as secured,
    ):
        secured.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ")
        answer = secured.recv(65536)
    assert b" 200 " not in answer
    assert time.monotonic() - began_s < 25


def test_the_other_instance_answers_when_one_is_gone(proxy: Proxy) -> None:
    """Runs last: it stops one of the two."""
    assert proxy.backends[0].stop(signal.SIGTERM) == 0
    with proxy.client() as client:
        for _ in range(10):
            assert client.post("/predict", files=CELL).status_code == 200
