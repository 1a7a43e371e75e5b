"""The service with its models elsewhere, all in this process: what a cluster adds, but for Ray itself."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.cluster import remote
from app.cluster.engine import Engine
from app.cluster.messages import Described, Order, Results
from app.cluster.outbox import SPREAD
from app.cluster.proxy import ProxyMiddleware
from app.cluster.remote import RemoteRunner
from app.cluster.scaling import by_queued_images
from app.cluster.shelf import Shelf
from app.core.errors import LeukoscopeError, ModelNotFoundError, NotReadyError, QueueFullError
from app.inference.local import LocalRunner
from app.inference.registry import ModelRef, Registry
from app.main import create_app
from app.metrics import Metrics
from app.settings import Settings
from tests.models import NAME, VERSION, write_models
from tests.service.harness import ADMIN_KEY, AS_ADMIN, hanging_up, make_settings, running, samples
from training.data.drawn import cell_bytes

pytestmark = pytest.mark.anyio

CELL = cell_bytes("ALL", seed=0)
BMP = ("cell.bmp", CELL)
T = TypeVar("T")
OLD, NEW = ModelRef(NAME, VERSION), ModelRef(NAME, "2.0.0")


class Near:
    """Engines that are one engine in this process; each call is noted, and may be held or made to fail."""

    def __init__(self, settings: Settings) -> None:
        self.engine = Engine(settings, Metrics())
        self.orders: list[Order] = []
        self.sizes: list[int] = []
        self.under_way = self.most_under_way = 0
        self.adoptions: list[ModelRef] = []
        self.open = asyncio.Event()
        self.open.set()
        self.begun = asyncio.Semaphore(0)
        self.cancelled = 0
        self.fault: LeukoscopeError | None = None

    async def run(self, order: Order, images: NDArray[np.uint8]) -> Results:
        self.orders.append(order)
        self.sizes.append(len(images))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.begun.release()
        try:
            await self.open.wait()
            if self.fault is not None:
                raise self.fault
            return _unless_fault(await self.engine.run(order, images))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def load(self, ref: ModelRef) -> Described:
        return _unless_fault(await self.engine.load(ref))

    async def adopted(self, ref: ModelRef) -> None:
        self.adoptions.append(ref)
        await self.engine.adopted(ref)

    async def ping(self) -> None:
        if self.fault is not None:
            raise self.fault

    async def has_begun(self) -> None:
        """Wait until one more call is under way."""
        await self.begun.acquire()


def _unless_fault(result: T | LeukoscopeError) -> T:
    if isinstance(result, LeukoscopeError):
        raise result
    return result


DECODED = "leukoscope_decode_seconds_count"


@asynccontextmanager
async def apart(settings: Settings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient, Near]]:
    """Run the application with its models behind the protocol of a cluster."""
    near = Near(settings)
    await near.engine.start()

    def open_runner(settings: Settings, metrics: Metrics, registry: Registry) -> RemoteRunner:
        return RemoteRunner(settings, metrics, registry, near)

    app = create_app(settings, open_runner=open_runner, ready_first=True)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", timeout=30, headers=AS_ADMIN
        ) as client:
            near.orders.clear()
            near.sizes.clear()
            near.begun = asyncio.Semaphore(0)
            yield app, client, near
    await near.engine.drain()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path)
    return write_models(tmp_path, version="2.0.0", seed=8, active=False)


def settings_of(models: Path, **values: object) -> Settings:
    return make_settings(models, **{"admin_keys": ADMIN_KEY.setting, "max_batch": 2} | values)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - a test may poll
            await asyncio.sleep(0.01)


async def decoded(client: httpx.AsyncClient) -> float:
    """How many pictures have been decoded so far."""
    text = (await client.get("/metrics")).text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(DECODED))


async def test_answers_are_those_of_one_process(models: Path, drawn_cells: list[bytes]) -> None:
    files = [("files", (f"{number}.bmp", data)) for number, data in enumerate(drawn_cells * 3)]
    files[5] = ("files", ("notes.txt", b"no picture"))
    async with apart(settings_of(models)) as (_, client, near):
        there = (await client.post("/predict", files=files)).json()
        shown = await client.post("/explain", files=files[:1])
    async with running(settings_of(models)) as (_, client):
        here = (await client.post("/predict", files=files)).json()
        drawn = await client.post("/explain", files=files[:1])
    assert there["predictions"] == here["predictions"]
    assert shown.content == drawn.content
    assert sum(near.sizes) == len(files)  # the bad one was never sent; the one of /explain was


async def test_a_lone_picture_goes_at_once_and_many_go_together(models: Path) -> None:
    async with apart(settings_of(models, max_batch=4)) as (_, client, near):
        await client.post("/predict", files={"file": BMP})
        assert near.sizes == [1]
        near.open.clear()
        asked = asyncio.create_task(client.post("/predict", files=[("files", BMP)] * 30))
        for _ in range(SPREAD):
            await near.has_begun()
        # Some more have been decoded by then, and wait together.
        async with asyncio.timeout(30):
            while await decoded(client) < 1 + SPREAD + 2:  # noqa: ASYNC110 - a test may poll
                await asyncio.sleep(0.01)
        near.open.set()
        assert (await asked).status_code == 200
    assert sum(near.sizes) == 31
    assert max(near.sizes) in {2, 3, 4}
    assert near.most_under_way == SPREAD


async def test_request_id_and_deadline_go_along(models: Path) -> None:
    async with apart(settings_of(models)) as (_, client, near):
        headers = {"X-Request-ID": "lab-42", "X-Request-Timeout": "7"}
        await client.post("/predict", files={"file": BMP}, headers=headers)
        await client.post("/predict", files={"file": BMP})
    first, second = near.orders
    assert (first.ref, first.log) == (OLD, {"request_id": "lab-42"})
    assert 0 < first.left_s <= 7 < second.left_s <= 30


async def test_an_order_whose_time_is_over_is_not_run(models: Path) -> None:
    near = Near(settings_of(models))
    await near.engine.start()
    size_px = 48
    result = await near.engine.run(Order(OLD, 0.0, {}), np.zeros((1, size_px, size_px, 3), np.uint8))
    await near.engine.drain()
    assert type(result).__name__ == "DeadlineExceededError"
    assert near.engine.admitted == 0


async def test_what_is_given_up_here_is_given_up_there(models: Path) -> None:
    async with apart(settings_of(models)) as (app, client, near):
        near.open.clear()
        late = await client.post("/predict", files={"file": BMP}, headers={"X-Request-Timeout": "0.3"})
        assert (late.status_code, late.json()["type"]) == (504, "/problems/deadline-exceeded")
        await until(lambda: near.cancelled == 1)
        near.begun = asyncio.Semaphore(0)
        sent = await hanging_up(app, near, "/predict", CELL, [(b"content-type", b"image/bmp")])
        await until(lambda: near.cancelled == 2)
        assert sent == []
        metrics = samples((await client.get("/metrics")).text)
    assert metrics["leukoscope_cancelled_total"] == 2
    assert metrics["leukoscope_queue_depth"] == 0


async def test_a_full_engine_is_a_429_with_its_own_wait(models: Path) -> None:
    async with apart(settings_of(models)) as (_, client, near):
        near.fault = QueueFullError("The engine is full.", retry_after_s=17)
        response = await client.post("/predict", files=[("files", BMP)] * 3)
        assert (response.status_code, response.json()["type"]) == (429, "/problems/queue-full")
        assert response.headers["retry-after"] == "17"
        near.fault = None
        assert (await client.post("/predict", files={"file": BMP})).status_code == 200
        metrics = samples((await client.get("/metrics")).text)
    ends = sum(value for name, value in metrics.items() if name.startswith(("leukoscope_failed", "leukoscope_cancel")))
    assert ends == 3
    assert metrics["leukoscope_admitted_total"] == 4
    assert metrics["leukoscope_queue_depth"] == 0


async def test_here_is_a_bound_too(models: Path) -> None:
    async with apart(settings_of(models, queue_limit=4, max_images_per_request=4)) as (_, client, near):
        near.open.clear()
        waiting = asyncio.create_task(client.post("/predict", files=[("files", BMP)] * 3))
        await near.has_begun()
        response = await client.post("/predict", files=[("files", BMP)] * 2)
        assert response.status_code == 429
        near.open.set()
        assert (await waiting).status_code == 200


async def test_a_change_of_the_model_goes_to_all(models: Path) -> None:
    async with apart(settings_of(models)) as (_, client, near):
        response = await client.put("/models/active", json={"name": NAME, "version": "2.0.0"})
        assert (response.status_code, response.json()["persisted"]) == (200, True)
        assert near.adoptions == [NEW]
        body = (await client.post("/predict", files={"file": BMP})).json()
        assert body["model"]["version"] == "2.0.0"
        assert near.orders[-1].ref == NEW


async def test_a_change_that_another_one_has_made_is_followed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 0.02)
    async with apart(settings_of(models)) as (_, client, near):

        async def served() -> str:
            return str((await client.get("/models/active")).json()["version"])

        await asyncio.sleep(0.1)
        (models / "active.json").write_text(json.dumps({"name": NAME, "version": "2.0.0"}), encoding="utf-8")
        async with asyncio.timeout(30):
            while await served() != "2.0.0":  # noqa: ASYNC110 - a test may poll
                await asyncio.sleep(0.02)
        assert near.adoptions == []  # nobody is told twice
        (models / "active.json").write_text(json.dumps({"name": NAME, "version": "9.9.9"}), encoding="utf-8")
        await asyncio.sleep(0.2)
        assert await served() == "2.0.0"


async def test_no_engine_is_not_ready_until_one_answers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 0.02)
    async with apart(settings_of(models)) as (_, client, near):

        async def status() -> int:
            return (await client.get("/readyz")).status_code

        near.fault = NotReadyError("none")
        async with asyncio.timeout(30):
            while await status() != 503:  # noqa: ASYNC110 - a test may poll
                await asyncio.sleep(0.02)
        assert "engine" in (await client.get("/readyz")).json()["reason"]
        near.fault = None
        async with asyncio.timeout(30):
            while await status() != 200:  # noqa: ASYNC110 - a test may poll
                await asyncio.sleep(0.02)


async def test_an_engine_loads_what_it_is_asked_for_and_drops_what_nobody_wants(models: Path) -> None:
    settings = settings_of(models)
    runner = LocalRunner(settings, Metrics(), Registry(models))
    runner.start()
    shelf = Shelf(runner, keep=frozenset(), idle_s=0)
    old, new = await asyncio.gather(shelf.get(OLD), shelf.get(NEW))
    assert (await shelf.get(OLD), old.manifest.version, new.manifest.version) == (old, VERSION, "2.0.0")
    for _ in range(2):  # a failure is not kept
        with pytest.raises(ModelNotFoundError):
            await shelf.get(ModelRef(NAME, "9.9.9"))
    shelf.active = NEW
    await shelf.tidy()
    assert await shelf.get(NEW) is new
    assert await shelf.get(OLD) is not old
    await runner.drain(1)


def test_pictures_not_calls_decide_how_many_engines() -> None:
    context = SimpleNamespace(
        aggregated_metrics={"queued_images": {"a": 40.0, "b": 8.0}}, config=SimpleNamespace(target_ongoing_requests=16)
    )
    assert by_queued_images(context) == (3.0, {})
    context.aggregated_metrics = {}
    assert by_queued_images(context) == (0.0, {})


def behind_serve(status: int, *, answered: bool) -> ASGIApp:
    """Answer as the application behind Serve's proxy does, or as the proxy itself."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        got = dict(scope["headers"])[b"x-request-id"].decode()
        response = PlainTextResponse("Internal Server Error", status)
        for _ in range(2 if answered else 1):
            response.headers.append("X-Request-ID", got)
        await response(scope, receive, send)

    return ProxyMiddleware(app)


@pytest.mark.parametrize(("sent", "kept"), [("lab-42", True), ("a b", False), ("", False)])
async def test_the_proxy_gives_one_request_id(sent: str, kept: bool) -> None:
    transport = httpx.ASGITransport(app=behind_serve(200, answered=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        response = await client.get("/predict", headers={"X-Request-ID": sent})
    ids = response.headers.get_list("x-request-id")
    assert len(ids) == 1
    assert (ids[0] == sent) is kept


@pytest.mark.parametrize(("answered", "status"), [(True, 500), (False, 503)])
async def test_a_request_that_serve_lost_may_be_sent_again(answered: bool, status: int) -> None:
    transport = httpx.ASGITransport(app=behind_serve(500, answered=answered))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        response = await client.get("/predict")
    assert response.status_code == status
    assert len(response.headers.get_list("x-request-id")) == 1
    if not answered:
        assert response.json()["type"] == "/problems/not-ready"
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert response.headers["retry-after"]
