"""The audit log: its chain, its mending, its rotation, and the service that writes it."""

import asyncio
import hashlib
import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.errors import AuditError
from app.core.postprocess import Prediction
from app.core.spec import MODEL_FILE
from app.security.audit import AuditFile, AuditLog, Entry
from app.security.audit_chain import FIRST_PREVIOUS, rotated_files, verify
from app.security.keys import new_key
from tests.models import NAME, VERSION
from tests.service.harness import ServerProcess, free_port, make_settings, run_cli, running, samples, services_of
from tests.service.test_app import check_problem
from training.data.drawn import cell_bytes

CELL = cell_bytes("ALL", seed=0)
BMP = {"file": ("cell.bmp", CELL)}
MEBIBYTE = 1024 * 1024


def entry(number: int = 0) -> Entry:
    prediction = Prediction(label="ALL", confidence=0.9, probabilities={"ALL": 0.9, "HEM": 0.1}, reasons=())
    return Entry(f"request-{number}", "lab", b"picture", ("tiny", "1.0.0"), "0" * 64, prediction)


def opened(path: Path, max_bytes: int = MEBIBYTE) -> AuditFile:
    file = AuditFile(path, fsync=True, max_bytes=max_bytes)
    file.open()
    return file


def written(path: Path, count: int, max_bytes: int = MEBIBYTE) -> None:
    file = opened(path, max_bytes)
    for number in range(count):
        file.append([entry(number)])
    file.close()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_chain(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    written(log, 3)
    lines = lines_of(log)
    assert [line["sequence"] for line in lines] == [1, 2, 3]
    assert [line["previous"] for line in lines] == [FIRST_PREVIOUS, lines[0]["hash"], lines[1]["hash"]]
    for raw, line in zip(log.read_bytes().splitlines(), lines, strict=True):
        body = raw.replace(f',"hash":"{line["hash"]}"'.encode(), b"")
        assert hashlib.sha256(body).hexdigest() == line["hash"]
    assert verify(log).last.hash == lines[-1]["hash"]
    assert log.stat().st_mode & 0o777 & ~0o640 == 0


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    for _ in range(3):
        written(log, 2)
    assert verify(log).last.sequence == 6


def drop(lines: list[bytes]) -> list[bytes]:
    return lines[:2] + lines[3:]


def swap(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def change(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"ALL"', b'"HEM"'), *lines[2:]]


def double(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines]


def foreign(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], b"hello\n", *lines[3:]]


def glue(lines: list[bytes]) -> list[bytes]:
    return [lines[0][:-1], *lines[1:]]


def resealed(lines: list[bytes]) -> list[bytes]:
    """Change a line and give it a hash that fits: the next line shows it."""
    body = lines[1][: lines[1].index(b',"hash"')].replace(b'"ALL"', b'"HEM"')
    digest = hashlib.sha256(body + b"}").hexdigest()
    return [lines[0], body + f',"hash":"{digest}"}}\n'.encode(), *lines[2:]]


@pytest.mark.parametrize("tamper", [drop, swap, change, double, foreign, glue, resealed])
def test_tampering_is_found_and_named(tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]]) -> None:
    log = tmp_path / "audit.jsonl"
    written(log, 5)
    log.write_bytes(b"".join(tamper(log.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AuditError, match=r"audit\.jsonl, line [1-4]: "):
        verify(log)


def test_an_anchor_shows_a_log_cut_short(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    written(log, 5)
    anchor = lines_of(log)[-1]["hash"]
    assert verify(log, anchor).last.sequence == 5
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    assert verify(log).last.sequence == 3
    with pytest.raises(AuditError, match="cut short or written anew"):
        verify(log, anchor)


@pytest.mark.parametrize("kept", [1, 5, 100, -1])
def test_a_torn_last_line_is_mended(tmp_path: Path, kept: int) -> None:
    log = tmp_path / "audit.jsonl"
    written(log, 3)
    whole = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(whole[:2]) + whole[2][:kept])
    torn = len(whole[2][:kept])
    assert verify(log).torn_bytes == torn
    written(log, 1)
    assert verify(log).torn_bytes == 0
    second, recovered, last = lines_of(log)[1:]
    assert (recovered["event"], recovered["torn_bytes"]) == ("recovered", torn)
    assert recovered["torn"].encode() == whole[2][:kept]
    assert (recovered["previous"], last["previous"]) == (second["hash"], recovered["hash"])


@pytest.mark.parametrize("torn", [b'{"sequ', b"\0" * 500])
def test_a_torn_first_line_is_mended(tmp_path: Path, torn: bytes) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_bytes(torn)
    written(log, 1)
    assert [line["event"] for line in lines_of(log)] == ["recovered", "prediction"]
    verify(log)


@pytest.mark.parametrize("content", [b"not ours\n", b"not ours", b"x" * 200_000, b'{"sequence":1}\n'])
def test_another_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_bytes(content)
    with pytest.raises(AuditError, match="move the file away"):
        opened(log)
    assert log.read_bytes() == content


def test_rotation_does_not_break_the_chain(tmp_path: Path) -> None:
    log = tmp_path / "audit[1].jsonl"
    written(log, 40, max_bytes=4096)
    older = rotated_files(log)
    assert len(older) >= 3
    assert older[0].name == "audit[1].jsonl.000001"
    assert all(4096 <= file.stat().st_size < 8192 for file in older)
    found = verify(log)
    assert (found.first, found.last.sequence, len(found.files)) == (1, 40, len(older) + 1)
    log.unlink()  # as after a crash between the two steps of a rotation
    before = verify(log).last.sequence
    written(log, 1, max_bytes=4096)
    assert verify(log).last.sequence == before + 1
    older[0].rename(tmp_path / "archived")
    assert verify(log).first > 1
    older[1].unlink()
    verify(log)
    older[-2].unlink()
    with pytest.raises(AuditError, match="does not follow"):
        verify(log)


def test_only_one_process_writes(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    file = opened(log)
    with pytest.raises(AuditError, match="another process"):
        opened(log)
    file.close()
    opened(log).close()


@pytest.mark.parametrize("path", ["no-such-folder/audit.jsonl", "."])
def test_a_path_that_cannot_be_opened(tmp_path: Path, path: str) -> None:
    with pytest.raises(AuditError):
        opened(tmp_path / path)


class SlowFile:
    """Stands in for the file: counts its writes and fails when told to."""

    def __init__(self) -> None:
        self.writes: list[int] = []
        self.failing = False
        self.gate = threading.Event()

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def append(self, entries: Sequence[Entry]) -> None:
        assert self.gate.wait(20)
        if self.failing:
            raise OSError(28, "No space left on device")
        self.writes.append(len(entries))


@pytest.mark.anyio
async def test_entries_that_wait_go_together() -> None:
    file = SlowFile()
    log = AuditLog(file)
    writes = [asyncio.create_task(log.write([entry(number)])) for number in range(10)]
    await asyncio.sleep(0.1)
    writes[5].cancel()  # its client hung up; the line is written all the same
    file.gate.set()
    await asyncio.gather(*writes, return_exceptions=True)
    assert sum(file.writes) == 10
    assert len(file.writes) <= 2
    file.failing = True
    with pytest.raises(AuditError, match="not given"):
        await log.write([entry()])
    file.failing = False
    await log.write([entry()])
    await log.close()


@pytest.mark.anyio
async def test_the_service_records_each_answered_picture(models_dir: Path, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    secret, key = new_key("ward-3")
    headers = {"X-API-Key": secret, "X-Request-ID": "mine-1"}
    async with running(make_settings(models_dir, audit_log=log, api_keys=key.setting)) as (app, client):
        files = [("files", ("a.bmp", CELL)), ("files", ("notes.txt", b"text")), ("files", ("b.bmp", CELL))]
        answer = (await client.post("/predict", files=files, headers=headers)).json()
        check_problem(
            await client.post("/predict", files={"file": ("x", b"x")}, headers=headers), 422, "undecodable-image"
        )
        manifest = services_of(app).engine.serving().model.manifest
        text = (await client.get("/metrics")).text
    lines = lines_of(log)
    assert len(lines) == 2
    answered = answer["predictions"][0]
    for line in lines:
        assert line["time"].endswith("Z")
        assert (line["request_id"], line["key"]) == ("mine-1", "ward-3")
        assert line["image_sha256"] == hashlib.sha256(CELL).hexdigest()
        assert line["model"] == {"name": NAME, "version": VERSION}
        assert line["model_sha256"] == manifest.files[MODEL_FILE]
        assert {name: line[name] for name in ("label", "confidence", "review", "reasons")} == {
            name: answered[name] for name in ("label", "confidence", "review", "reasons")
        }
    assert log.stat().st_size < 3000  # no picture in it
    assert samples(text)["leukoscope_audit_records_total"] == 2
    verify(log)


@pytest.mark.anyio
async def test_it_is_off_by_default(models_dir: Path) -> None:
    async with running(make_settings(models_dir)) as (app, client):
        assert services_of(app).audit is None
        assert (await client.post("/predict", files=BMP)).status_code == 200


def limit_files(process: ServerProcess, size: int) -> None:
    """Let the process write no file beyond `size`: what it writes next fails as on a full disk."""
    resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("policy", "status"), [("refuse", 503), ("answer", 200)])
def test_a_full_disk(models_dir: Path, tmp_path: Path, policy: str, status: int) -> None:
    log = tmp_path / "audit.jsonl"
    with (
        ServerProcess(tmp_path / "log", models_dir=models_dir, audit_log=log, audit_on_failure=policy) as server,
        server.client() as client,
    ):
        assert client.post("/predict", files=BMP).status_code == 200
        limit_files(server, log.stat().st_size + 100)  # room for a part of a line
        for _ in range(2):
            response = client.post("/predict", files=BMP)
            assert response.status_code == status
            assert str(tmp_path) not in response.text
        assert samples(client.get("/metrics").text)["leukoscope_audit_failures_total"] == 2
        limit_files(server, resource.RLIM_INFINITY)
        assert client.post("/predict", files=BMP).status_code == 200
        assert server.stop(signal.SIGTERM) == 0
    found = verify(log)
    assert found.torn_bytes == 0
    assert [line["event"] for line in lines_of(log)].count("prediction") == 2


def test_it_survives_sigkill(models_dir: Path, tmp_path: Path) -> None:
    """What was answered is in the log, whenever the process dies."""
    log = tmp_path / "audit.jsonl"
    answered: list[str] = []
    for _ in range(3):
        with ServerProcess(tmp_path / "log", models_dir=models_dir, audit_log=log, audit_max_bytes=8192) as server:
            threads = [threading.Thread(target=_post_until_dead, args=(server, answered)) for _ in range(3)]
            goal = len(answered) + 20
            for thread in threads:
                thread.start()
            while len(answered) < goal:
                threads[0].join(0.01)
            os.kill(server.process.pid, signal.SIGKILL)
            for thread in threads:
                thread.join()
        verify(log)
    files = [*rotated_files(log), log]
    recorded = {line.get("request_id") for file in files for line in lines_of(file)}
    assert len(answered) >= 60
    assert set(answered) <= recorded
    result = run_cli("audit", "verify", str(log))
    assert result.returncode == 0, result.stderr
    assert "intact: " in result.stdout


def _post_until_dead(server: ServerProcess, answered: list[str]) -> None:
    with server.client() as client:
        while True:
            try:
                response = client.post("/predict", files=BMP)
            except httpx.HTTPError:
                return
            answered.append(response.json()["request_id"])


def test_a_log_that_cannot_be_opened_stops_the_start(models_dir: Path, tmp_path: Path) -> None:
    result = run_cli("serve", models_dir=models_dir, port=free_port(), audit_log=tmp_path / "nowhere" / "audit.jsonl")
    assert result.returncode == 1
    assert "the audit log can't be opened" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    assert run_cli("audit", "verify", str(log)).returncode == 1
    written(log, 3)
    result = run_cli("audit", "verify", str(log))
    assert result.returncode == 0
    last = lines_of(log)[-1]["hash"]
    assert result.stdout.splitlines() == ["intact: 3 lines in 1 files", f"last hash: {last}"]
    assert run_cli("audit", "verify", str(log), "--anchor", last).returncode == 0
    assert run_cli("audit", "verify", str(log), "--anchor", "0" * 64).returncode == 1
    log.write_bytes(log.read_bytes().replace(b'"ALL"', b'"HEM"', 1))
    result = run_cli("audit", "verify", str(log))
    assert result.returncode == 1
    assert "line 1: its hash does not fit" in result.stderr
