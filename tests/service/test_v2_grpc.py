"""The gRPC service in this process: each error's code, limits, cancellation, and its start and end."""

import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as blocking_client
import tritonclient.grpc.aio as grpc_client
from fastapi import FastAPI
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from app.core.errors import ListenError
from app.inference.engine import State
from app.problems import KINDS
from app.security.keys import new_key
from app.v2.grpc_option import GrpcOption
from app.v2.grpc_server import CODES
from tests.models import NAME, SIZE_PX, VERSION, write_models
from tests.service.harness import (
    FakeSession,
    ServerProcess,
    free_port,
    make_settings,
    running,
    samples,
    serve_with,
    services_of,
)

pytestmark = pytest.mark.anyio

Service = tuple[FastAPI, httpx.AsyncClient, Any]
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
async def service(models_dir: Path) -> AsyncIterator[Service]:
    port = free_port()
    settings = make_settings(
        models_dir,
        grpc_port=port,
        max_request_bytes=1_000_000,
        queue_limit_bytes=1_000_000,
        max_json_bytes=50_000,
        request_timeout_s=5,
    )
    async with running(settings) as (app, http):
        client = grpc_client.InferenceServerClient(f"127.0.0.1:{port}")
        yield app, http, client
        await client.close()


def pictures(count: int = 1, value: int = 0) -> list[Any]:
    array = np.full((count, SIZE_PX, SIZE_PX, 3), value, dtype=np.uint8)
    return [blocking_client.InferInput("image", list(array.shape), "UINT8").set_data_from_numpy(array)]


async def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        await call
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def test_every_status_has_a_code() -> None:
    assert {kind.status for kind in KINDS.values()} <= CODES.keys()


async def test_what_is_not_ready_says_so(service: Service) -> None:
    app, _, client = service
    engine = services_of(app).engine
    engine._state, engine._reason = State.FAILED, "because"
    assert await client.is_server_live()
    assert not await client.is_server_ready()
    assert not await client.is_model_ready(NAME)
    assert await refusal(client.infer(NAME, pictures())) == ("UNAVAILABLE", "because")
    assert await refusal(client.get_model_metadata(NAME)) == ("UNAVAILABLE", "because")


async def test_full_queue_and_failing_model(service: Service) -> None:
    app, http, client = service
    session = FakeSession()
    session.gate.clear()
    serve_with(app, session, queue_limit=3)
    waiting = asyncio.create_task(client.infer(NAME, pictures(2)))
    await session.has_begun()
    stub = grpc.aio.insecure_channel(f"127.0.0.1:{services_of(app).settings.grpc_port}").unary_unary(
        MODEL_INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )
    request = pb.ModelInferRequest(model_name=NAME, raw_input_contents=[bytes(2 * SIZE_PX * SIZE_PX * 3)])
    request.inputs.add(name="image", datatype="UINT8", shape=[2, SIZE_PX, SIZE_PX, 3])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(request)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = caught.value.trailing_metadata()
    assert trailing is not None
    assert int(str(trailing["retry-after"])) >= 1
    session.gate.set()
    assert (await waiting).as_numpy("label").shape == (2,)
    session.broken = True
    code, message = await refusal(client.infer(NAME, pictures()))
    assert code == "INTERNAL"
    assert "secret" not in message
    metrics = samples((await http.get("/metrics")).text)
    assert metrics['leukoscope_rejected_total{reason="queue-full"}'] == 1
    assert metrics["leukoscope_queue_depth"] == 0
    assert metrics["leukoscope_queue_bytes"] == 0


async def test_what_nobody_expected_has_no_internals(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    app, _, client = service

    async def broken(*_: object) -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(type(services_of(app).engine.serving().classifier), "answer", broken)
    code, message = await refusal(client.infer(NAME, pictures()))
    assert code == "INTERNAL"
    assert "secret" not in message


@pytest.mark.parametrize("by", ["deadline", "cancel"])
async def test_a_client_that_waits_no_longer_is_given_up(service: Service, by: str) -> None:
    app, http, client = service
    session = FakeSession(max_batch=1)
    session.gate.clear()
    serve_with(app, session)
    waiting = asyncio.create_task(client.infer(NAME, pictures(2), client_timeout=1 if by == "deadline" else None))
    await session.has_begun()
    if by == "cancel":
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    else:
        assert (await refusal(waiting))[0] == "DEADLINE_EXCEEDED"
    while samples((await http.get("/metrics")).text)["leukoscope_cancelled_total"] < 2:  # noqa: ASYNC110 - it is on its way
        await asyncio.sleep(0.01)
    session.gate.set()
    metrics = samples((await http.get("/metrics")).text)
    assert metrics["leukoscope_queue_depth"] == 0
    assert metrics["leukoscope_queue_bytes"] == 0


async def test_messages_that_are_none_and_too_many_bytes_or_numbers(service: Service) -> None:
    app, _, client = service
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{services_of(app).settings.grpc_port}")
    for garbage in (b"\xff\xff\xff", b"\x0a\x02\xff\xff"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(MODEL_INFER)(garbage)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "ModelInferRequest" in str(caught.value.details())
    request = pb.ModelInferRequest(model_name=NAME)
    tensor = request.inputs.add(name="image", datatype="UINT8", shape=[8, SIZE_PX, SIZE_PX, 3])
    tensor.contents.uint_contents.extend([1] * 8 * SIZE_PX * SIZE_PX * 3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(MODEL_INFER)(request.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "50,000" in str(caught.value.details())
    assert (await refusal(client.infer(NAME, pictures(160))))[0] == "RESOURCE_EXHAUSTED"
    services_of(app).engine.budget.change(990_000)
    code, message = await refusal(client.infer(NAME, pictures(2)))
    assert code == "RESOURCE_EXHAUSTED"
    assert "bytes of uploads" in message
    services_of(app).engine.budget.change(-990_000)
    assert (await client.infer(NAME, pictures(2))).as_numpy("review").shape == (2,)
    await channel.close()


async def test_a_resident_model_is_chosen_by_its_name(tmp_path: Path) -> None:
    write_models(tmp_path)
    write_models(tmp_path, version="2.0.0", seed=1, active=False)
    port = free_port()
    async with running(make_settings(tmp_path, grpc_port=port, resident=(f"{NAME}@2.0.0",))) as (_, http):
        client = grpc_client.InferenceServerClient(f"127.0.0.1:{port}")
        answers = [await client.infer(NAME, pictures(1, 90), version) for version in (VERSION, "2.0.0")]
        await client.close()
        assert [answer.get_response().model_version for answer in answers] == [VERSION, "2.0.0"]
        logits = [answer.as_numpy("logits").tolist() for answer in answers]
        assert logits[0] != logits[1]
        assert (await http.get(f"/v2/models/{NAME}")).json()["versions"] == [VERSION, "2.0.0"]
        assert (await http.get(f"/v2/models/{NAME}/versions/2.0.0")).json()["versions"] == [VERSION, "2.0.0"]


async def test_calls_under_way_are_answered_before_it_stops(models_dir: Path) -> None:
    port = free_port()
    session = FakeSession()
    session.gate.clear()
    client = grpc_client.InferenceServerClient(f"127.0.0.1:{port}")
    async with running(make_settings(models_dir, grpc_port=port)) as (app, _):
        serve_with(app, session)
        waiting = asyncio.create_task(client.infer(NAME, pictures(2)))
        await session.has_begun()
        asyncio.get_running_loop().call_later(0.3, session.gate.set)
    assert (await waiting).as_numpy("label").shape == (2,)
    assert (await refusal(client.infer(NAME, pictures())))[0] == "UNAVAILABLE"
    await client.close()


async def test_without_the_extra_the_start_says_what_to_install(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "app.v2.grpc_server", None)
    with pytest.raises(ListenError, match=r"pip install 'leukoscope\[grpc\]'"):
        await GrpcOption(services_of(service[0]), "1").start()


async def test_keys_and_request_ids(models_dir: Path, tmp_path: Path) -> None:
    secret, key = new_key("lab")
    port = free_port()
    audit = tmp_path / "audit.log"
    settings = make_settings(models_dir, grpc_port=port, api_keys=key.setting, audit_log=audit)
    async with running(settings) as (_, http):
        client = grpc_client.InferenceServerClient(f"127.0.0.1:{port}")
        assert await client.is_server_live()
        assert await client.is_server_ready()
        for headers in ({}, {"x-api-key": "wrong"}, {"authorization": f"Basic {secret}"}):
            for call in (client.infer(NAME, pictures(), headers=headers), client.is_model_ready(NAME, headers=headers)):
                code, message = await refusal(call)
                assert code == "UNAUTHENTICATED"
                assert "X-API-Key" in message
        for headers in ({"x-api-key": secret}, {"authorization": f"Bearer {secret}"}):
            await client.infer(NAME, pictures(), headers=headers | {"x-request-id": "lab-42"})
        await client.close()
        path = f"/v2/models/{NAME}/infer"
        body: Any = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, SIZE_PX, SIZE_PX, 3]}]}
        body["inputs"][0]["data"] = [0] * SIZE_PX * SIZE_PX * 3
        refused = await http.post(path, json=body)
        assert refused.status_code == 401
        assert refused.json().keys() == {"error"}
        assert refused.headers["www-authenticate"]
        answered = await http.post(path, json=body, headers={"x-api-key": secret, "x-request-id": "lab-43"})
        assert answered.status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 200
        assert (await http.get(f"/v2/models/{NAME}")).status_code == 401
    lines = [json.loads(line) for line in audit.read_text(encoding="utf-8").splitlines()]
    recorded = [line for line in lines if line["event"] == "prediction"]
    assert [line["request_id"] for line in recorded] == ["lab-42", "lab-42", "lab-43"]
    assert {line["key"] for line in recorded} == {"lab"}
    pixels = bytes(SIZE_PX * SIZE_PX * 3)
    assert {line["image_sha256"] for line in recorded} == {hashlib.sha256(pixels).hexdigest()}


async def test_the_request_id_comes_back(service: Service) -> None:
    app, _, _ = service
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{services_of(app).settings.grpc_port}")
    for sent, kept in (("lab-42", True), ("a b", False)):
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(
            b"", metadata=(("x-request-id", sent),)
        )
        await call
        got = str((await call.initial_metadata())["x-request-id"])
        assert (got == sent) is kept
        assert kept or len(got) == 26
    await channel.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(models_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with ServerProcess(tmp_path / "log", models_dir=models_dir, grpc_port=port) as server:
        client = blocking_client.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.infer(NAME, pictures()).as_numpy("label").shape == (1,)
        assert f"over gRPC on 127.0.0.1:{port}" in server.log()
        assert server.stop(number) == 0
        client.close()
        for word in ("Traceback", "ERROR", "Error"):
            assert word not in server.log()
