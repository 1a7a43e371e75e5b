"""Alerts and dashboard, against the service's real metrics, promtool, and a real Prometheus where one is at hand."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.core.parts import ReviewBand
from app.routes.metrics import expected_shares
from tests.deploy.queries import DEPLOY, ROOT, TARGET_LABELS, alert_rules, all_expressions, dashboard_queries, named
from tests.models import write_models
from tests.service.harness import ServerProcess, free_port
from training.data.drawn import cell_bytes

_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? ")


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH; docs/deployment.md says where to get it")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that has seen all that the alerts and the dashboard tell of."""
    folder = tmp_path_factory.mktemp("monitored")
    models = write_models(folder / "models", review=ReviewBand(low=0, high=1))
    settings: dict[str, Any] = {"models_dir": models, "baseline_review_share": 0.2, "baseline_all_share": 0.6}
    with ServerProcess(folder / "log", **settings) as process:
        post_traffic(process.url)
        yield process


def post_traffic(url: str) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        for seed in range(6):
            cell = cell_bytes("ALL" if seed % 2 else "HEM", seed)
            assert client.post("/predict", files={"file": ("cell.bmp", cell)}).status_code == 200
        assert client.post("/predict", files={"file": ("notes.txt", b"text")}).status_code == 422


def exposed(text: str) -> dict[str, set[str]]:
    """Name of each sample, and of each counter that has none yet → labels."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and not line.startswith("#"):
            found.setdefault(match[1], set()).update(re.findall(r'([a-z_]+)="', match[2] or ""))
    for name in re.findall(r"# TYPE ([a-z_]+) counter", text):
        found.setdefault(name, set())
    return found


@pytest.mark.parametrize("expression", all_expressions())
def test_every_metric_and_label_exists(server: ServerProcess, expression: str) -> None:
    with server.client() as client:
        there = exposed(client.get("/metrics").text)
    there["up"] = set()
    metrics, grouped = named(expression)
    assert metrics
    for metric, labels in metrics.items():
        assert metric in there, metric
        assert labels <= there[metric] or metric in UNLABELLED_HERE, (metric, labels)
    reachable = set().union(*(there[metric] for metric in metrics), *(UNLABELLED_HERE.get(m, set()) for m in metrics))
    assert grouped <= reachable


# Counters whose event can't be made on purpose here: a model that fails.
UNLABELLED_HERE = {"leukoscope_failed_total": {"reason"}}


def test_expectations_come_from_the_models_report() -> None:
    report = {"cells": 10, "review": {"share_sent_to_review": 0.2}, "confusion": {"counts": [[5, 1], [2, 2]]}}
    assert expected_shares({"test": report}) == (0.2, 0.7)
    others: list[dict[str, Any]] = [{}, {"test": None}, {"test": {}}, {"test": {"cells": 0, "review": {}}}]
    for other in others:
        assert expected_shares(other) == (None, None)


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/*/report.json")), ids=str)
def test_the_shipped_models_reports_tell_both(path: Path) -> None:
    review_share, all_share = expected_shares(json.loads(path.read_text(encoding="utf-8")))
    assert review_share is not None
    assert all_share is not None
    assert 0 < review_share < all_share < 1


def test_every_alert_is_tested_and_has_a_runbook_entry() -> None:
    tested = (DEPLOY / "alerts_test.yml").read_text(encoding="utf-8")
    for rule in alert_rules():
        name = rule["alert"]
        assert re.search(rf"alertname: {name}\s+exp_alerts:\s+- exp_labels", tested), f"{name} never fires in a test"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert anchor == name.lower()
        assert re.search(rf"^## {name}$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_configuration_of_prometheus_scrapes_the_service_under_the_alerts_job() -> None:
    scrapes = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert [scrape["job_name"] for scrape in scrapes] == ["leukoscope"]
    assert {"job", "instance"} == TARGET_LABELS


def test_grafana_finds_its_dashboard_and_its_source() -> None:
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    uid = source["datasources"][0]["uid"]
    dashboard = json.loads((DEPLOY / "grafana/dashboards/leukoscope.json").read_text(encoding="utf-8"))
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    assert {target["datasource"]["uid"] for target in targets} == {uid}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_promtool_tests_the_alerts() -> None:
    promtool = program("promtool")
    for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
        result = subprocess.run(  # noqa: S603 - found on PATH
            [promtool, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False, timeout=120
        )
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A real Prometheus with this project's own configuration, but for the target's address."""
    command = program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(DEPLOY / "alerts.yml")]
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server.port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
    port = free_port()
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - found on PATH
            [command, *arguments, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_for_samples(client, server)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def wait_for_samples(client: httpx.Client, server: ServerProcess) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            found = client.get("/api/v1/query", params={"query": 'count_over_time(up{job="leukoscope"}[1m]) >= 4'})
            if found.json()["data"]["result"]:
                return
        except (httpx.HTTPError, ValueError, KeyError):
            pass
        assert time.monotonic() < deadline_s, "Prometheus has no samples"
        post_traffic(server.url)  # so that counters grow between two scrapes
        time.sleep(0.5)


def ask(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


@pytest.mark.parametrize(("panel", "expression"), dashboard_queries())
def test_every_panel_shows_something(prometheus: httpx.Client, panel: str, expression: str) -> None:
    found = ask(prometheus, expression)
    if "leukoscope_failed_total" in expression:
        return  # nothing has failed
    assert found, panel


def test_no_alert_fires_on_a_service_that_is_well(prometheus: httpx.Client) -> None:
    rules = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    states = {rule["name"]: rule["health"] for group in rules for rule in group["rules"]}
    assert set(states) == {rule["alert"] for rule in alert_rules()}
    assert set(states.values()) <= {"ok", "unknown"}
    for rule in alert_rules():
        if rule["alert"] != "LeukoscopeErrors":
            ask(prometheus, rule["expr"])
    firing = [alert["labels"]["alertname"] for alert in prometheus.get("/api/v1/alerts").json()["data"]["alerts"]]
    assert "LeukoscopeDown" not in firing
    assert "LeukoscopeNotReady" not in firing
