"""Faults of a real server process: each is told, none hangs, and what can go on does."""

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.models import NAME, write_models
from tests.service.harness import ADMIN_KEY, AS_ADMIN, ServerProcess, samples
from training.data.drawn import cell_bytes

CELL = cell_bytes("ALL", seed=3)
FILES = {"file": ("cell.bmp", CELL)}


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    return tmp_path / "fault"


@pytest.fixture
def start(tmp_path: Path, models_dir: Path, fault: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start servers that obey `fault`, and stop them at the end."""
    with contextlib.ExitStack() as stack:

        def begin(**settings: object) -> ServerProcess:
            variables = {"FAULT_FILE": str(fault)} | {
                name: str(settings.pop(name)) for name in list(settings) if name.startswith("FAULT_")
            }
            options: dict[str, Any] = {
                "models_dir": models_dir,
                "max_batch": 4,
                "admin_keys": ADMIN_KEY.setting,
            } | settings
            log = tmp_path / f"log-{time.monotonic_ns()}"
            return stack.enter_context(
                ServerProcess(log, module="tests.service.faulty_server", variables=variables, **options)
            )

        yield begin


def eventually(check: Callable[[], bool], limit_s: float = 20) -> None:
    deadline_s = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def status(client: httpx.Client, path: str) -> int:
    return client.get(path).status_code


def metrics(client: httpx.Client) -> dict[str, float]:
    return samples(client.get("/metrics").text)


def test_a_model_that_crashes_and_recovers(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start()
    with server.client() as client:
        fault.write_text("raise")
        for _ in range(3):
            response = client.post("/predict", files=FILES)
            assert response.status_code == 500
            assert response.json()["type"] == "/problems/inference-failed"
            assert "secret" not in response.text
        # Three in a row: not the batches, but the device. Nobody is sent here until it is well.
        eventually(lambda: status(client, "/readyz") == 503)
        assert client.get("/readyz").json()["reason"] == "The last 3 batches failed."
        assert status(client, "/livez") == 200
        assert client.post("/predict", files=FILES).status_code == 503
        fault.write_text("")
        eventually(lambda: status(client, "/readyz") == 200)
        assert client.post("/predict", files=FILES).status_code == 200
        counted = metrics(client)
        assert counted['leukoscope_failed_total{reason="inference"}'] == 3
        assert counted["leukoscope_queue_depth"] == 0


def test_a_model_that_stays_broken_is_not_alive(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start(run_timeout_s=0.5)
    with server.client() as client:
        fault.write_text("raise")
        for _ in range(3):
            client.post("/predict", files=FILES)
        eventually(lambda: status(client, "/livez") == 503)
        assert server.stop(signal.SIGTERM) == 0


def test_numbers_that_are_none(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start()
    with server.client() as client:
        fault.write_text("nan")
        response = client.post("/predict", files=[("files", ("a.bmp", CELL)), ("files", ("b.txt", b"text"))])
        assert response.status_code == 500
        fault.write_text("")
        assert client.post("/predict", files=FILES).status_code == 200


def test_a_decoder_that_breaks(start: Callable[..., ServerProcess]) -> None:
    server = start(FAULT_DECODER="breaks")
    with server.client() as client:
        pictures = [("files", ("a.bmp", CELL)), ("files", ("b.bmp", b"BREAK")), ("files", ("c.bmp", CELL))]
        for _ in range(10):
            response = client.post("/predict", files=pictures)
            assert response.status_code == 200
            assert ["error" in item for item in response.json()["predictions"]] == [False, True, False]
            assert "secret" not in response.text
        assert status(client, "/readyz") == 200
        counted = metrics(client)
        assert counted['leukoscope_rejected_total{reason="undecodable-image"}'] == 10
        assert counted["leukoscope_queue_depth"] == 0


def test_a_device_without_memory_gets_smaller_batches(start: Callable[..., ServerProcess], fault: Path) -> None:
    # Pictures wait for each other: on a slow machine this model is done with each before the next one is decoded.
    server = start(max_batch=8, max_wait_ms=200)
    with server.client() as client:
        assert client.get("/models/active").json()["max_batch"] == 8
        fault.write_text("memory 2")
        response = client.post("/predict", files=[("files", ("cell.bmp", CELL))] * 40)
        assert response.status_code == 200
        assert response.json()["summary"]["errors"] == 0
        assert client.get("/models/active").json()["max_batch"] <= 2
        assert "no memory for" in server.log()


def test_a_run_that_hangs(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start(run_timeout_s=1, request_timeout_s=60, drain_timeout_s=1)
    with server.client() as client, ThreadPoolExecutor(4) as pool:
        fault.write_text("hang")
        waiting = [pool.submit(client.post, "/predict", files=FILES) for _ in range(3)]
        eventually(lambda: status(client, "/livez") == 503)
        assert client.get("/livez").json()["status"] == "hung"
        assert "restart" in client.get("/readyz").json()["reason"]
        # All that waited are told, long before their own deadline, and nobody else is let in.
        assert [future.result(20).status_code for future in waiting] == [503] * 3
        assert client.post("/predict", files=FILES).status_code == 503
        # It hangs on, and still the process ends when it is told to.
        assert server.stop(signal.SIGTERM) != 0
    assert "left behind" in server.log()


def test_a_process_that_ends_when_it_hangs(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start(run_timeout_s=0.5, drain_timeout_s=1, exit_when_hung=True)
    with server.client() as client:
        fault.write_text("hang")
        assert client.post("/predict", files=FILES).status_code == 503
    assert server.process.wait(20) == 1
    assert "so that a supervisor starts this process anew" in server.log()


def test_a_run_that_was_only_slow_is_forgiven(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start(run_timeout_s=0.5)
    with server.client() as client:
        fault.write_text("hang")
        assert client.post("/predict", files=FILES).status_code == 503
        fault.write_text("")
        eventually(lambda: status(client, "/readyz") == 200)
        assert status(client, "/livez") == 200
        assert client.post("/predict", files=FILES).status_code == 200


def test_deadlines_and_what_they_drop(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start(max_batch=1, inference_threads=1)
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        fault.write_text("slow 0.5")
        first = pool.submit(client.post, "/predict", files=FILES)
        eventually(lambda: metrics(client)["leukoscope_batch_size_count"] == 1)
        late = [
            pool.submit(client.post, "/predict", files=FILES, headers={"X-Request-Timeout": "0.2"}) for _ in range(5)
        ]
        assert {future.result(20).status_code for future in late} == {504}
        assert first.result(20).status_code == 200
        counted = metrics(client)
        assert counted["leukoscope_cancelled_total"] == 5
        assert counted["leukoscope_batch_size_count"] == 1  # none of them cost a run
        for bad in ("soon", "-1", "0", "nan", "inf"):
            response = client.post("/predict", files=FILES, headers={"X-Request-Timeout": bad})
            assert (response.status_code, response.json()["type"]) == (400, "/problems/invalid-parameter")


def test_clients_that_hang_up_cost_nothing(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start(max_batch=1, inference_threads=1)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/bmp\r\nContent-Length: {len(CELL)}\r\n\r\n"
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        fault.write_text("slow 1")
        first = pool.submit(client.post, "/predict", files=FILES)
        eventually(lambda: metrics(client)["leukoscope_batch_size_count"] == 1)
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                connection.sendall(head.encode() + CELL)
                eventually(lambda: metrics(client)["leukoscope_queue_depth"] >= 2)
        eventually(lambda: metrics(client)["leukoscope_cancelled_total"] == 5)
        assert first.result(20).status_code == 200
        assert metrics(client)["leukoscope_batch_size_count"] == 1


def test_a_stop_under_load_loses_nothing(start: Callable[..., ServerProcess], fault: Path) -> None:
    server = start(drain_delay_s=1)
    fault.write_text("slow 0.05")
    stopping = False

    def ask(client: httpx.Client) -> int:
        try:
            return client.post("/predict", files=FILES).status_code
        except httpx.ConnectError:
            assert stopping
            return 0

    def keep_asking() -> list[int]:
        seen = [200]
        with server.client() as client:
            while seen[-1] == 200:
                seen.append(ask(client))
        return seen

    with server.client() as client, ThreadPoolExecutor(6) as pool:
        askers: list[Future[list[int]]] = [pool.submit(keep_asking) for _ in range(6)]
        eventually(lambda: metrics(client)["leukoscope_batch_size_count"] > 5)
        stopping = True
        server.process.send_signal(signal.SIGTERM)
        # Readiness goes first; what still comes is answered until the listener closes.
        eventually(lambda: status(client, "/readyz") == 503, 0.9)
        assert client.get("/readyz").json()["status"] == "draining"
        assert client.post("/predict", files=FILES).status_code == 200
        ends = [asker.result(30)[-1] for asker in askers]
    assert server.process.wait(20) == 0
    assert set(ends) <= {0, 503}


def test_a_killed_server_starts_again(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    write_models(models, version="2.0.0", seed=4, active=False)
    server = start(models_dir=models)
    with server.client() as client:
        assert (
            client.put("/models/active", json={"name": NAME, "version": "2.0.0"}, headers=AS_ADMIN).status_code == 200
        )
        client.post("/predict", files=FILES)
    server.process.kill()
    server.process.wait()
    with start(models_dir=models).client() as client:
        answer = client.post("/predict", files=FILES).json()
    assert answer["model"]["version"] == "2.0.0"


def test_a_full_disk(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    write_models(models, version="2.0.0", seed=4, active=False)
    before = (models / "active.json").read_bytes()
    server = start(models_dir=models, FAULT_DISK="full")
    with server.client() as client:
        assert client.post("/predict", files=[("files", ("cell.bmp", CELL))] * 20).status_code == 200
        answer = client.put("/models/active", json={"name": NAME, "version": "2.0.0"}, headers=AS_ADMIN).json()
        assert (answer["version"], answer["persisted"]) == ("2.0.0", False)
        assert "active.json can't be written" in answer["persist_problem"]
        assert client.post("/predict", files=FILES).json()["model"]["version"] == "2.0.0"
    assert (models / "active.json").read_bytes() == before
    assert sorted(path.name for path in models.iterdir()) == ["active.json", NAME]


def test_a_clock_that_jumps(start: Callable[..., ServerProcess]) -> None:
    server = start(FAULT_CLOCK="jumps", request_timeout_s=20)
    with server.client() as client:
        for _ in range(20):
            response = client.post("/predict", files=FILES, headers={"X-Request-Timeout": "20"})
            assert response.status_code == 200
        assert metrics(client)["leukoscope_queue_wait_seconds_sum"] < 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_under_a_flood_of_large_uploads(start: Callable[..., ServerProcess], fault: Path) -> None:
    mib = 1024 * 1024
    server = start(queue_limit_bytes=64 * mib, max_request_bytes=32 * mib, decode_threads=1)
    body = CELL + bytes(24 * mib - len(CELL))  # a cell with 24 MiB behind it: read to its end, as it is a good picture
    headers = {"Content-Type": "image/bmp"}

    def ask(_: int) -> tuple[int, str]:
        with server.client() as client:
            response = client.post("/predict", content=body, headers=headers)
        return response.status_code, response.headers.get("retry-after", "")

    with server.client() as client:
        client.post("/predict", files=FILES)
        before_kib = rss_kib(server.process.pid)
        fault.write_text("slow 0.1")
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(64)))
        peak_kib = peak_rss_kib(server.process.pid)
        assert metrics(client)["leukoscope_queue_bytes"] == 0
    assert {code for code, _ in answers} <= {200, 429}
    assert any(code == 200 for code, _ in answers)
    assert all(retry for code, retry in answers if code == 429)
    # 1.5 GiB came; held were the budget, a second copy of what is being handed on, and what the allocator keeps:
    # 2.3 to 4.0 budgets as measured, and 6.2 to 6.7 where the budget is out of reach.
    assert (peak_kib - before_kib) * 1024 < 5 * 64 * mib


def rss_kib(pid: int) -> int:
    return _status_kib(pid, "VmRSS")


def peak_rss_kib(pid: int) -> int:
    return _status_kib(pid, "VmHWM")


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("pause_s", [0.3, 0.8, 1.3])
def test_a_stop_in_the_middle_of_the_start(models_dir: Path, tmp_path: Path, pause_s: float) -> None:
    server = ServerProcess(tmp_path / "log", models_dir=models_dir)
    time.sleep(pause_s)
    # Before Python has come to our own handler, the signal itself ends the process.
    assert server.stop(signal.SIGTERM) in {0, -signal.SIGTERM}
    assert "Traceback" not in server.log()
