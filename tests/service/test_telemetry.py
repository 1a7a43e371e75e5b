"""Log lines as JSON with request ids, and traces as a collector receives them."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.logs import JsonFormatter
from tests.service.harness import ROOT, ServerProcess, free_port
from training.data.drawn import cell_bytes

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
BMP = {"file": ("cell.bmp", cell_bytes("ALL", seed=0))}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """An OTLP collector: keeps the spans that are posted to it."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                message = proto.ExportTraceServiceRequest.FromString(body)
                for resource in message.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


def lines_of(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log().splitlines()]


def test_every_line_is_json_with_its_requests_id(models_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "log", models_dir=models_dir, log_format="json") as server, server.client() as client:
        client.post("/predict", files=BMP, headers={"X-Request-ID": "mine-1"})
        client.get("/nope%0aInjected%20line")
        assert server.stop(signal.SIGTERM) == 0
    lines = lines_of(server)
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
    predicted = next(line for line in lines if line.get("request_id") == "mine-1")
    assert (predicted["logger"], predicted["level"]) == ("leukoscope.access", "info")
    assert (predicted["method"], predicted["path"], predicted["status"]) == ("POST", "/predict", 200)
    assert predicted["duration_ms"] > 0
    lost = next(line for line in lines if line.get("status") == 404)
    assert len(lost["request_id"]) == 26
    assert "\n" not in lost["path"]


def test_exceptions_stay_on_their_line() -> None:
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, __file__, 1, "it %s", ("broke",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["message"]) == ("error", "it broke")
    assert "ValueError: broken" in line["exception"]


def test_a_request_is_traced_to_its_run_in_the_model(
    models_dir: Path, tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    settings: dict[str, Any] = {"models_dir": models_dir, "traces": "otlp", "log_format": "json"}
    with ServerProcess(tmp_path / "log", **settings) as server, server.client() as client:
        headers = {"traceparent": PARENT, "X-Request-ID": "mine-1"}
        assert client.post("/predict", files=[("files", BMP["file"])] * 3, headers=headers).status_code == 200
        assert client.get("/nope").status_code == 404
        assert server.stop(signal.SIGTERM) == 0
    (request,) = collector.named("POST /predict")
    assert request.trace_id.hex() == PARENT.split("-")[1]
    assert request.parent_span_id.hex() == PARENT.split("-")[2]
    described = attributes(request)
    assert (described["http.route"], described["http.response.status_code"]) == ("/predict", 200)
    assert described["leukoscope.request_id"] == "mine-1"
    line = next(line for line in lines_of(server) if line.get("request_id") == "mine-1")
    assert line["trace_id"] == request.trace_id.hex()
    assert attributes(collector.named("GET")[0])["http.response.status_code"] == 404
    check_work(collector, request, pictures=3)


def check_work(collector: Collector, request: Any, pictures: int) -> None:
    """Each wait is a part of the request; batches are traces of their own, linked to it, with a run in each."""
    waits = collector.named("queue")
    assert len(waits) == pictures
    assert {(span.trace_id, span.parent_span_id) for span in waits} == {(request.trace_id, request.span_id)}
    batches = collector.named("batch")
    assert sum(attributes(span)["leukoscope.batch_size"] for span in batches) == pictures
    for batch in batches:
        assert [(link.trace_id, link.span_id) for link in batch.links] == [(request.trace_id, request.span_id)]
        assert batch.trace_id != request.trace_id
    runs = collector.named("run")
    assert {(run.trace_id, run.parent_span_id) for run in runs} == {(span.trace_id, span.span_id) for span in batches}


def test_a_collector_that_is_away_does_no_harm(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with ServerProcess(tmp_path / "log", models_dir=models_dir, traces="otlp") as server, server.client() as client:
        assert client.post("/predict", files=BMP).status_code == 200
        began_s = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
    assert time.monotonic() - began_s < 20


def test_where_traces_are_off_their_sdk_is_not_loaded() -> None:
    script = "import sys, app.main, app.cli; print(*sorted(sys.modules))"
    result = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not [name for name in result.stdout.split() if name.startswith(("opentelemetry.sdk", "app.telemetry"))]
