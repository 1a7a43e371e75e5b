"""The application in this process: answers, problems, limits, states, documents."""

import asyncio
import io
import logging
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from app.inference.classifier import Classifier
from app.inference.engine import State
from tests.models import NAME, VERSION, write_models
from tests.service.harness import FakeSession, hanging_up, make_settings, running, samples, serve_with, services_of
from training.data.drawn import cell_bytes

pytestmark = pytest.mark.anyio

Service = tuple[FastAPI, httpx.AsyncClient]
CELL = cell_bytes("ALL", seed=0)
BMP = ("cell.bmp", CELL)
TEXT = ("notes.txt", b"no picture")


@pytest.fixture
async def service(models_dir: Path) -> AsyncIterator[Service]:
    async with running(make_settings(models_dir, max_images_per_request=4, max_request_bytes=8_000_000)) as both:
        yield both


@pytest.fixture
async def client(service: Service) -> httpx.AsyncClient:
    return service[1]


def check_problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == f"/problems/{slug}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == response.url.path
    assert body["request_id"] == response.headers["x-request-id"]
    return body


def tiff_16() -> bytes:
    buffer = io.BytesIO()
    Image.new("I;16", (60, 60), 40_000).save(buffer, "TIFF")
    return buffer.getvalue()


def cmyk_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (60, 60), (10, 200, 30, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def animated_gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def huge_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


async def test_one_image(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict", files={"file": BMP})
    assert response.status_code == 200
    body = response.json()
    assert body["request_id"] == response.headers["x-request-id"]
    assert body["model"] == {"name": NAME, "version": VERSION}
    (prediction,) = body["predictions"]
    assert prediction.keys() == {"filename", "label", "confidence", "probabilities", "review", "reasons"}
    assert prediction["filename"] == "cell.bmp"
    assert prediction["confidence"] == prediction["probabilities"][prediction["label"]]
    assert body["summary"]["images"] == 1


async def test_many_images_keep_their_order_and_bad_ones_their_own_error(client: httpx.AsyncClient) -> None:
    other = ("other.bmp", cell_bytes("HEM", seed=3))
    files = [("files", BMP), ("files", TEXT), ("file", other), ("files", ("zero.bmp", b""))]
    body = (await client.post("/predict", files=files)).json()
    assert [item["filename"] for item in body["predictions"]] == ["cell.bmp", "notes.txt", "other.bmp", "zero.bmp"]
    good, text, second, zero = body["predictions"]
    assert text["error"].keys() == {"type", "title", "status", "detail"}
    assert (text["error"]["type"], text["error"]["status"]) == ("/problems/undecodable-image", 422)
    assert "0 bytes" in zero["error"]["detail"]
    singly = [(await client.post("/predict", files={"file": file})).json() for file in (BMP, other)]
    assert [good, second] == [answer["predictions"][0] for answer in singly]
    summary = body["summary"]
    assert (summary["images"], summary["errors"], summary["ALL"] + summary["HEM"]) == (4, 2, 2)


async def test_several_threads_of_a_cpu_give_the_same_answers(models_dir: Path, client: httpx.AsyncClient) -> None:
    files = [("files", (f"{seed}.bmp", cell_bytes("ALL", seed))) for seed in range(4)]
    expected = (await client.post("/predict", files=files)).json()["predictions"]
    settings = make_settings(models_dir).model_copy(update={"inference_threads": 3})
    async with running(settings) as (_, wide):
        answers = await asyncio.gather(*(wide.post("/predict", files=files) for _ in range(3)))
        metrics = samples((await wide.get("/metrics")).text)
    for answer in answers:
        assert answer.json()["predictions"] == expected
    assert metrics["leukoscope_batch_size_sum"] == 12


@pytest.mark.parametrize(
    "media_type", ["image/bmp", "image/x-ms-bmp", "application/octet-stream", "IMAGE/BMP; charset=x"]
)
async def test_raw_body(client: httpx.AsyncClient, media_type: str) -> None:
    response = await client.post("/predict", content=CELL, headers={"content-type": media_type})
    assert response.status_code == 200
    assert response.json()["predictions"][0]["filename"] is None


@pytest.mark.parametrize("make", [tiff_16, cmyk_jpeg])
async def test_unusual_pictures_are_answered(client: httpx.AsyncClient, make: Any) -> None:
    response = await client.post("/predict", files={"file": ("cell", make())})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        (b"", 422, "undecodable-image"),
        (b"text", 422, "undecodable-image"),
        (CELL[:-50_000], 422, "undecodable-image"),
        (CELL[:20], 422, "undecodable-image"),
        (animated_gif(), 422, "undecodable-image"),
        (huge_png(), 413, "image-too-large"),
    ],
)
async def test_a_single_bad_picture_is_its_own_problem(
    client: httpx.AsyncClient, content: bytes, status: int, slug: str
) -> None:
    check_problem(await client.post("/predict", files={"file": ("x.bmp", content)}), status, slug)
    raw = await client.post("/predict", content=content, headers={"content-type": "image/bmp"})
    check_problem(raw, status, slug)


async def test_several_bad_pictures_are_listed(client: httpx.AsyncClient) -> None:
    files = [("files", TEXT), ("files", ("huge.png", huge_png()))]
    body = check_problem(await client.post("/predict", files=files), 422, "no-readable-image")
    assert [(item["filename"], item["error"]["status"]) for item in body["errors"]] == [
        ("notes.txt", 422),
        ("huge.png", 413),
    ]


@pytest.mark.parametrize("media_type", ["text/plain", "image/gif", "application/json", "", "multipart/mixed"])
async def test_other_media_types(client: httpx.AsyncClient, media_type: str) -> None:
    headers = {"content-type": media_type} if media_type else {}
    body = check_problem(await client.post("/predict", content=CELL, headers=headers), 415, "unsupported-media-type")
    assert (media_type or "missing") in body["detail"]
    assert "image/bmp" in body["detail"]


@pytest.mark.parametrize(
    ("request_arguments", "words"),
    [
        ({"files": {"image": BMP}}, ["'image'", "'file' or 'files'"]),
        ({"files": {"file": (None, b"text")}}, ["'file'", "no file"]),
        ({"files": {"note": (None, b"text")}}, ["'note'", "'file' or 'files'"]),
        ({"content": b"", "headers": {"content-type": "multipart/form-data; boundary=x"}}, ["empty"]),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, ["boundary"]),
        ({"content": b"--y\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}}, ["parsed"]),
        ({"content": b"--x\r\n\r\n\r\n--x--", "headers": {"content-type": "multipart/form-data; boundary=x"}}, []),
    ],
)
async def test_malformed_forms(client: httpx.AsyncClient, request_arguments: dict[str, Any], words: list[str]) -> None:
    body = check_problem(await client.post("/predict", **request_arguments), 400, "malformed-form")
    for word in words:
        assert word in body["detail"]


async def test_text_beside_files_is_ignored(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict", files=[("note", (None, b"text")), ("file", BMP)])
    assert response.status_code == 200


async def test_uploads_never_touch_the_disk(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("rolled over to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    large = ("large.bmp", CELL + bytes(3_000_000))
    assert (await client.post("/predict", files={"file": large})).status_code == 200


async def test_too_many_images(client: httpx.AsyncClient) -> None:
    body = check_problem(await client.post("/predict", files=[("files", BMP)] * 5), 413, "too-many-images")
    assert "4" in body["detail"]


async def test_too_many_bytes_announced_or_streamed(client: httpx.AsyncClient) -> None:
    sent = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(20):
            sent += 1_000_000
            yield bytes(1_000_000)

    headers = {"content-type": "image/bmp"}
    check_problem(await client.post("/predict", content=bytes(8_000_001), headers=headers), 413, "body-too-large")
    response = await client.post("/predict", content=stream(), headers=headers)
    check_problem(response, 413, "body-too-large")
    assert response.headers["connection"] == "close"
    assert sent == 20_000_000  # the rest was read and thrown away


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [("GET", "/nope", 404, "not-found"), ("GET", "/predict", 405, "method-not-allowed")],
)
async def test_wrong_address(client: httpx.AsyncClient, method: str, path: str, status: int, slug: str) -> None:
    response = await client.request(method, path)
    check_problem(response, status, slug)
    assert status != 405 or response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("sent", "kept"), [("lab-42.a_B", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False)]
)
async def test_request_id(client: httpx.AsyncClient, sent: str, kept: bool) -> None:
    response = await client.get("/livez", headers={"x-request-id": sent})
    got = response.headers["x-request-id"]
    assert (got == sent) is kept
    assert kept or len(got) == 26


async def test_what_nobody_expected_is_a_500_without_internals(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(Classifier, "classify", broken)
    response = await service[1].post("/predict", files={"file": BMP})
    body = check_problem(response, 500, "internal-error")
    assert "secret" not in response.text
    assert "secret internals" in caplog.text  # with the traceback
    assert body["request_id"] in caplog.text


async def test_a_failing_model_is_a_500_and_the_service_lives_on(service: Service) -> None:
    app, client = service
    session = FakeSession()
    serve_with(app, session)
    session.broken = True
    response = await client.post("/predict", files={"file": BMP})
    check_problem(response, 500, "inference-failed")
    assert "secret" not in response.text
    session.broken = False
    assert (await client.post("/predict", files={"file": BMP})).status_code == 200


async def test_full_queue(service: Service) -> None:
    app, client = service
    session = FakeSession()
    session.gate.clear()
    serve_with(app, session, queue_limit=4)
    waiting = asyncio.create_task(client.post("/predict", files=[("files", BMP)] * 3))
    await session.has_begun()
    response = await client.post("/predict", files=[("files", BMP)] * 2)
    check_problem(response, 429, "queue-full")
    assert int(response.headers["retry-after"]) >= 1
    session.gate.set()
    assert (await waiting).status_code == 200


async def test_deadline(models_dir: Path) -> None:
    async with running(make_settings(models_dir, request_timeout_s=0.6)) as (app, client):
        session = FakeSession()
        session.gate.clear()
        serve_with(app, session)
        check_problem(await client.post("/predict", files={"file": BMP}), 504, "deadline-exceeded")
        session.gate.set()
        assert (await client.post("/predict", files={"file": BMP})).status_code == 200
        metrics = samples((await client.get("/metrics")).text)
        assert metrics["leukoscope_cancelled_total"] == 1


async def test_a_client_that_stops_sending(models_dir: Path) -> None:
    async def stall() -> AsyncIterator[bytes]:
        yield CELL[:1000]
        await asyncio.sleep(0.5)

    async with running(make_settings(models_dir, request_timeout_s=0.1)) as (_, client):
        response = await client.post("/predict", content=stall(), headers={"content-type": "image/bmp"})
        check_problem(response, 504, "deadline-exceeded")


async def test_a_client_that_hangs_up_is_given_up(service: Service) -> None:
    app, client = service
    session = FakeSession(max_batch=1)
    session.gate.clear()
    serve_with(app, session)
    sent = await hanging_up(app, session, "/predict", CELL, [(b"content-type", b"image/bmp")])
    session.gate.set()
    metrics = samples((await client.get("/metrics")).text)
    assert sent == []
    assert metrics["leukoscope_cancelled_total"] == 1
    assert metrics["leukoscope_queue_depth"] == 0


@pytest.mark.parametrize("state", [State.STARTING, State.DRAINING, State.FAILED])
async def test_what_is_not_ready_says_so(service: Service, state: State) -> None:
    app, client = service
    engine = services_of(app).engine
    engine._state, engine._reason = state, "because"
    for path in ("/readyz", "/healthz"):
        response = await client.get(path)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert (response.json()["status"], response.json()["reason"]) == (state.value, "because")
    assert (await client.get("/livez")).status_code == 200
    response = await client.post("/predict", files={"file": BMP})
    if state is State.DRAINING:  # announced, but what still comes is answered until the listener closes
        assert response.status_code == 200
        return
    body = check_problem(response, 503, "not-ready")
    assert body["detail"] == "because"
    assert response.headers["retry-after"]


async def test_ready(client: httpx.AsyncClient) -> None:
    response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "reason": None,
        "model": {"name": NAME, "version": VERSION},
        "provider": {"requested": "auto", "active": "CPUExecutionProvider"},
    }


async def test_alive_while_starting_and_failed_without_a_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_settings(tmp_path), wait=False) as (_, client):
        assert (await client.get("/livez")).json() == {"status": "alive", "reason": None}
    async with running(make_settings(tmp_path)) as (_, client):
        body = (await client.get("/readyz")).json()
    assert body["status"] == "failed"
    assert "active.json" in body["reason"]
    assert "can't start" in caplog.text


async def test_the_ready_line(models_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="leukoscope"):
        async with running(make_settings(models_dir, port=8765)):
            pass
    assert "Leukoscope is ready on http://127.0.0.1:8765 (tiny@1.0.0 on CPUExecutionProvider)" in caplog.text


async def test_models(tmp_path: Path) -> None:
    write_models(tmp_path)
    write_models(tmp_path, version="0.9.0", active=False)
    (tmp_path / NAME / "0.9.0" / "model.onnx").write_bytes(b"changed")
    async with running(make_settings(tmp_path)) as (_, client):
        listed = (await client.get("/models")).json()
        active = (await client.get("/models/active")).json()
    assert listed["active"] == {"name": NAME, "version": VERSION}
    old, new = listed["models"]
    assert (old["version"], old["verified"], old["active"]) == ("0.9.0", False, False)
    assert "hash" in old["problem"]
    assert (new["version"], new["verified"], new["active"]) == (VERSION, True, True)
    assert active["provider"]["active"] == "CPUExecutionProvider"
    assert active["metrics"]["balanced_accuracy"] == 0.5
    assert active["hashes"].keys() == {"model.onnx", "report.json", "MODEL_CARD.md"}
    assert "image_png" not in active["manifest"]["golden"]
    assert active["manifest"]["temperature"] == 1.5


async def test_metrics(client: httpx.AsyncClient) -> None:
    await client.post("/predict", files=[("files", BMP), ("files", TEXT)])
    await client.get("/no/such/path")
    await client.request("BREW", "/livez")
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    got = samples(response.text)
    request = "leukoscope_http_request_duration_seconds_count"
    assert got[f'{request}{{method="POST",route="/predict",status="200"}}'] == 1
    assert got[f'{request}{{method="GET",route="unmatched",status="404"}}'] == 1
    assert got[f'{request}{{method="other",route="/livez",status="405"}}'] == 1
    assert sum(value for name, value in got.items() if name.startswith("leukoscope_predictions_total{")) == 1
    assert got['leukoscope_rejected_total{reason="undecodable-image"}'] == 1
    for histogram in ("prediction_confidence", "queue_wait_seconds", "inference_seconds", "batch_size"):
        assert got[f"leukoscope_{histogram}_count"] == 1
    assert got["leukoscope_decode_seconds_count"] == 2
    assert got["leukoscope_queue_limit"] == 1024
    info = f'name="{NAME}",precision="fp32",provider="CPUExecutionProvider",version="{VERSION}"'
    assert got[f"leukoscope_model_info{{{info}}}"] == 1
    assert "_created" not in response.text
    assert "notes.txt" not in response.text


async def test_documents_need_no_network(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    assert "Leukoscope" in page
    assert "https://" not in page
    assert (await client.get("/static-offline-docs/swagger-ui-bundle.js")).status_code == 200


async def test_the_page_and_its_files(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<style|<script(?! type=\"module\" src=)| on\w+=| style=|https?://", page.text)
    for name in re.findall(r'(?:href|src)="(web/[^"]+)"', page.text):
        file = await client.get(f"/{name}")
        assert (file.status_code, file.headers["cache-control"]) == (200, "no-cache")
    assert (await client.get("/web/../settings.py")).status_code == 404


async def test_the_card_of_the_active_model(client: httpx.AsyncClient) -> None:
    card = await client.get("/models/active/card")
    assert (card.status_code, card.text) == (200, "# A model for tests\n")
    assert card.headers["content-type"].startswith("text/plain")


async def test_openapi_describes_bodies_and_problems(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    predict = document["paths"]["/predict"]["post"]
    assert {"multipart/form-data", "image/bmp", "application/octet-stream"} <= predict["requestBody"]["content"].keys()
    assert {"200", "400", "413", "415", "422", "429", "500", "503", "504"} <= predict["responses"].keys()
    for status, response in predict["responses"].items():
        media_type = "application/json" if status == "200" else "application/problem+json"
        assert response["content"].keys() == {media_type}
    references = set(str(document).split("'#/components/schemas/")[1:])
    assert {reference.split("'")[0] for reference in references} <= document["components"]["schemas"].keys()
