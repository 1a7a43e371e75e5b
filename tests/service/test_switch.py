"""Changing the served model, and several models at once."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.core.spec import MODEL_FILE, Manifest
from app.inference.loader import OpenSession
from app.inference.opening import open_session as open_by_placement
from app.inference.providers import Placement
from app.inference.session import OnnxSession
from app.settings import Settings
from tests.models import NAME, VERSION, write_models
from tests.service.harness import ADMIN, ADMIN_KEY, AS_ADMIN, ServerProcess, make_settings, run_cli, running, samples
from training.data.drawn import cell_bytes

pytestmark = pytest.mark.anyio

Service = tuple[FastAPI, httpx.AsyncClient]
CELL = cell_bytes("ALL", seed=0)
NEW = {"name": NAME, "version": "2.0.0"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two versions of the tiny model that answer differently, and one whose file was changed."""
    write_models(tmp_path)
    write_models(tmp_path, version="2.0.0", seed=8, active=False)
    write_models(tmp_path, version="3.0.0", seed=9, active=False)
    (tmp_path / NAME / "3.0.0" / MODEL_FILE).write_bytes(b"changed")
    return tmp_path


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with served(make_settings(models, admin_keys=ADMIN_KEY.setting, max_batch=2)) as (_, client):
        yield client


@asynccontextmanager
async def served(
    settings: Settings, open_session: OpenSession = open_by_placement
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """Run the application; its client is an admin."""
    async with running(settings, open_session=open_session) as (app, client):
        client.headers.update(AS_ADMIN)
        yield app, client


async def ask(client: httpx.AsyncClient, model: str | None = None) -> tuple[str, float]:
    """Return the version that answered and its P(ALL)."""
    params = {} if model is None else {"model": model}
    response = await client.post("/predict", files={"file": ("cell.bmp", CELL)}, params=params)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["model"]["version"], body["predictions"][0]["probabilities"]["ALL"]


async def test_another_version_is_served_and_stays(client: httpx.AsyncClient, models: Path) -> None:
    version, before = await ask(client)
    assert version == VERSION
    response = await client.put("/models/active", json=NEW)
    assert response.status_code == 200
    body = response.json()
    assert (body["version"], body["active"], body["persisted"], body["persist_problem"]) == ("2.0.0", True, True, None)
    version, after = await ask(client)
    assert version == "2.0.0"
    assert after != before
    assert (await client.get("/models/active")).json()["version"] == "2.0.0"
    counted = samples((await client.get("/metrics")).text)
    infos = [name for name in counted if name.startswith("leukoscope_model_info")]
    assert len(infos) == 1
    assert 'version="2.0.0"' in infos[0]
    assert counted['leukoscope_model_switches_total{result="done"}'] == 1
    async with served(make_settings(models, admin_keys=ADMIN_KEY.setting)) as (_, next_start):
        assert (await ask(next_start))[0] == "2.0.0"


async def test_back_again_gives_the_same_answers(client: httpx.AsyncClient) -> None:
    before = await ask(client)
    await client.put("/models/active", json=NEW)
    await client.put("/models/active", json={"name": NAME, "version": VERSION})
    assert await ask(client) == before


@pytest.mark.parametrize(
    ("choice", "status", "slug"),
    [
        ({"name": NAME, "version": "9.0.0"}, 404, "model-not-found"),
        ({"name": "../..", "version": "etc"}, 404, "model-not-found"),
        ({"name": NAME, "version": "3.0.0"}, 422, "model-integrity"),
        ({"name": NAME}, 400, "invalid-parameter"),
        ({"name": NAME, "version": "2.0.0", "force": True}, 400, "invalid-parameter"),
        ("text", 400, "invalid-parameter"),
    ],
)
async def test_a_bad_choice_leaves_the_old_one_serving(
    client: httpx.AsyncClient, models: Path, choice: object, status: int, slug: str
) -> None:
    before = (models / "active.json").read_bytes()
    response = await client.put("/models/active", json=choice)
    assert (response.status_code, response.json()["type"]) == (status, f"/problems/{slug}")
    assert (await ask(client))[0] == VERSION
    assert (models / "active.json").read_bytes() == before
    assert (await client.get("/readyz")).status_code == 200


async def test_a_model_that_does_not_reproduce_its_golden_output(client: httpx.AsyncClient, models: Path) -> None:
    folder = models / NAME / "2.0.0"
    other = Manifest.load(models / NAME / VERSION)
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    wrong = text.replace(str(Manifest.load(folder).golden.logits[0]), str(other.golden.logits[0] + 1))
    (folder / "manifest.json").write_text(wrong, encoding="utf-8")
    response = await client.put("/models/active", json=NEW)
    assert (response.status_code, response.json()["type"]) == (422, "/problems/golden-mismatch")
    assert (await ask(client))[0] == VERSION
    counted = samples((await client.get("/metrics")).text)
    assert counted['leukoscope_model_switches_total{result="failed"}'] == 1


async def test_a_folder_that_cannot_be_written(client: httpx.AsyncClient, models: Path) -> None:
    (models / "active.part").mkdir()  # where the new file would be written first
    body = (await client.put("/models/active", json=NEW)).json()
    assert (body["version"], body["persisted"]) == ("2.0.0", False)
    assert "can't be written" in body["persist_problem"]
    assert (await ask(client))[0] == "2.0.0"


async def test_requests_under_way_end_with_the_model_that_they_began_with(models: Path) -> None:
    async with served(make_settings(models, admin_keys=ADMIN_KEY.setting, max_batch=2)) as (_, client):
        expected = {VERSION: (await ask(client))[1]}
        asking = [asyncio.create_task(ask(client)) for _ in range(40)]
        await asyncio.sleep(0)
        switched = asyncio.create_task(client.put("/models/active", json=NEW))
        while not switched.done():
            asking.append(asyncio.create_task(ask(client)))
            await asyncio.sleep(0.005)
        answers = [await task for task in asking]
        version, expected["2.0.0"] = await ask(client)
        assert version == "2.0.0"
        assert {expected[version] for version, _ in answers} == {probability for _, probability in answers}
        counted = samples((await client.get("/metrics")).text)
        assert counted["leukoscope_admitted_total"] == len(answers) + 2
        assert counted["leukoscope_cancelled_total"] == 0


async def test_two_changes_at_once(models: Path) -> None:
    def slowly(path: Path, manifest: Manifest, placement: Placement) -> OnnxSession:
        if manifest.version != VERSION:
            gate.wait(20)
        return OnnxSession.create(path, manifest, placement)

    gate = threading.Event()
    async with served(make_settings(models, admin_keys=ADMIN_KEY.setting, max_batch=1), open_session=slowly) as (
        _,
        client,
    ):
        first = asyncio.create_task(client.put("/models/active", json=NEW))
        await asyncio.sleep(0.1)
        second = await client.put("/models/active", json=NEW)
        assert (second.status_code, second.json()["type"]) == (409, "/problems/switch-in-progress")
        gate.set()
        assert (await first).status_code == 200


async def test_a_replaced_model_is_let_go(models: Path) -> None:
    opened: list[weakref.ref[OnnxSession]] = []

    def noted(path: Path, manifest: Manifest, placement: Placement) -> OnnxSession:
        session = OnnxSession.create(path, manifest, placement)
        opened.append(weakref.ref(session))
        return session

    async with served(make_settings(models, admin_keys=ADMIN_KEY.setting, max_batch=1), open_session=noted) as (
        _,
        client,
    ):
        await ask(client)
        await client.put("/models/active", json=NEW)
        await ask(client)
        await asyncio.sleep(0.05)
        gc.collect()
        assert [session() is None for session in opened] == [True, False]


async def test_several_models_answer_by_name(models: Path) -> None:
    write_models(models, name="other", version="1.0.0", seed=3, active=False)
    async with served(
        make_settings(models, admin_keys=ADMIN_KEY.setting, resident=(f"{NAME}@2.0.0", "other@1.0.0"))
    ) as (_, client):
        listed = (await client.get("/models")).json()
        assert [model["name"] for model in listed["resident"]] == [NAME, NAME, "other"]
        answers = [await ask(client, model) for model in (None, NAME, f"{NAME}@2.0.0", "other", "other@1.0.0")]
        assert [version for version, _ in answers] == [VERSION, VERSION, "2.0.0", "1.0.0", "1.0.0"]
        assert answers[0] == answers[1]
        assert answers[3] == answers[4]
        assert len({probability for _, probability in answers}) == 3
        for wrong in ("nothing", f"{NAME}@9.9.9", "", "other@"):
            response = await client.post("/predict", files={"file": ("cell.bmp", CELL)}, params={"model": wrong})
            assert (response.status_code, response.json()["type"]) == (404, "/problems/model-not-found")
            assert "other@1.0.0" in response.json()["detail"]
        # What is resident by the settings stays so, whatever is active.
        await client.put("/models/active", json={"name": "other", "version": "1.0.0"})
        assert (await ask(client))[0] == "1.0.0"
        assert (await ask(client, f"{NAME}@2.0.0"))[0] == "2.0.0"
        assert (await client.post("/predict", files={"f": b""}, params={"model": f"{NAME}@1.0.0"})).status_code == 404


async def test_a_resident_model_that_is_not_there(models: Path) -> None:
    async with served(make_settings(models, admin_keys=ADMIN_KEY.setting, resident=("other@1.0.0",))) as (_, client):
        body = (await client.get("/readyz")).json()
    assert (body["status"], "other@1.0.0" in body["reason"]) == ("failed", True)


async def test_activating_in_a_running_service(models: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(ADMIN, encoding="utf-8")
    with ServerProcess(tmp_path / "log", models_dir=models, admin_keys=ADMIN_KEY.setting) as server:
        command = ["models", "activate", NAME, "2.0.0", "--server", server.url]
        refused = await asyncio.to_thread(run_cli, *command)
        assert (refused.returncode, "not activated" in refused.stderr) == (1, True)
        done = await asyncio.to_thread(run_cli, *command, "--api-key-file", str(key))
        assert done.returncode == 0, done.stderr
        assert f"is served by {server.url} now" in done.stdout
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await ask(client))[0] == "2.0.0"
    gone = await asyncio.to_thread(run_cli, *command, "--api-key-file", str(key))
    assert (gone.returncode, server.url in gone.stderr, "Traceback" in gone.stderr) == (1, True, False)


@pytest.mark.parametrize(
    ("version", "code", "words"), [("2.0.0", 0, "is served from the next start on"), ("3.0.0", 1, "not activated")]
)
async def test_activating_from_the_command_line(models: Path, version: str, code: int, words: str) -> None:
    result = await asyncio.to_thread(run_cli, "models", "activate", NAME, version, models_dir=models)
    assert result.returncode == code
    assert words in result.stdout + result.stderr
    active = (models / "active.json").read_text(encoding="utf-8")
    assert (version in active) == (code == 0)
