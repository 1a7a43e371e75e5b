"""What the cluster survives: the loss of a node, a change of the model or of the settings, more and less of it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from app.core.postprocess import Prediction
from app.folder.remote import Service
from tests.models import NAME, VERSION, write_models
from tests.service.harness import ADMIN_KEY, AS_ADMIN, make_settings
from training.data.drawn import cell_bytes

if TYPE_CHECKING:
    from tests.cluster.local import LocalCluster

pytestmark = pytest.mark.anyio

CELLS = [cell_bytes(label, seed) for seed in range(2) for label in ("ALL", "HEM")]
DEADLINE_S = 60
# A replica of each on each node, so that a node takes one of both with it.
EVERYWHERE: dict[str, Any] = {"num_replicas": 2, "autoscaling_config": None, "max_replicas_per_node": 1}
ENGINE, INGRESS = "engine", "ingress"


@dataclass
class Load:
    """Requests by our own client, several at a time, each with a deadline of its own."""

    url: str
    answers: list[tuple[str, float]] = field(default_factory=list)
    stopping: bool = False

    async def run(self, clients: int) -> None:
        await asyncio.gather(*(self._one(number) for number in range(clients)))

    async def _one(self, number: int) -> None:
        cell = CELLS[number % len(CELLS)]
        async with Service(self.url, api_key=None, patience_s=DEADLINE_S) as service:
            while not self.stopping:
                answer = await service.answer([cell])  # raises if patience ends
                (result,) = answer.results
                assert isinstance(result, Prediction), result
                self.answers.append((answer.model.version, result.probabilities["ALL"]))


async def under_load(url: str, clients: int, meanwhile: Callable[[], object]) -> Load:
    """Keep asking while something is done, and for a while before and after."""
    load = Load(url)
    asking = asyncio.create_task(load.run(clients))
    for done in (None, meanwhile, None):
        before = len(load.answers)
        if done is not None:
            await asyncio.to_thread(done)
        async with asyncio.timeout(DEADLINE_S):
            while len(load.answers) < before + 4 * clients:
                await asyncio.sleep(0.05)
                if asking.done():
                    await asking
    load.stopping = True
    await asking
    return load


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_models(tmp_path)
    return write_models(tmp_path, version="2.0.0", seed=8, active=False)


def on_both_nodes(cluster: "LocalCluster", models: Path, **values: Any) -> None:
    cluster.need_two_nodes()
    settings = make_settings(models, admin_keys=ADMIN_KEY.setting, **values)
    cluster.deploy(settings, engine=EVERYWHERE, ingress=EVERYWHERE)
    for deployment in (ENGINE, INGRESS):
        cluster.await_replicas(deployment, 2)


async def expected(url: str) -> dict[str, set[float]]:
    """Return P(ALL) of each cell, by the version that answers now."""
    async with Service(url, api_key=None, patience_s=DEADLINE_S) as service:
        answer = await service.answer(CELLS)
    return {answer.model.version: {result.probabilities["ALL"] for result in answer.results}}  # type: ignore[union-attr]


async def test_a_node_is_killed_under_load(cluster: "LocalCluster", models: Path) -> None:
    on_both_nodes(cluster, models)
    right = await expected(cluster.url)
    load = await under_load(cluster.url, 6, cluster.kill_nodes)
    assert {probability for _, probability in load.answers} <= right[VERSION]
    # What was lost comes back with a node.
    cluster.need_two_nodes()
    for deployment in (ENGINE, INGRESS):
        await asyncio.to_thread(cluster.await_replicas, deployment, 2)
    assert await expected(cluster.url) == right


async def test_a_change_of_the_model_loses_no_request(cluster: "LocalCluster", models: Path) -> None:
    on_both_nodes(cluster, models)
    right = await expected(cluster.url)

    def switch() -> None:
        choice = {"name": NAME, "version": "2.0.0"}
        response = httpx.put(f"{cluster.url}/models/active", json=choice, headers=AS_ADMIN, timeout=60)
        assert response.status_code == 200, response.text

    load = await under_load(cluster.url, 6, switch)
    right |= await expected(cluster.url)
    assert right.keys() == {VERSION, "2.0.0"}
    for version, probability in load.answers:
        assert probability in right[version]
    with cluster.client() as client:  # both replicas have changed
        versions = {client.get("/models/active").json()["version"] for _ in range(20)}
    assert versions == {"2.0.0"}


async def test_new_settings_lose_no_request(cluster: "LocalCluster", models: Path) -> None:
    on_both_nodes(cluster, models)
    right = await expected(cluster.url)
    changed = make_settings(models, admin_keys=ADMIN_KEY.setting, max_images_per_request=7)
    load = await under_load(cluster.url, 4, lambda: cluster.deploy(changed, engine=EVERYWHERE, ingress=EVERYWHERE))
    assert {probability for _, probability in load.answers} <= right[VERSION]
    with cluster.client() as client:
        files = [("files", ("cell.bmp", CELLS[0]))] * 8
        assert client.post("/predict", files=files).status_code == 413


async def test_more_engines_under_load_and_fewer_after_it(cluster: "LocalCluster", models: Path) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 2,
        "look_back_period_s": 3,
        "policy": {"policy_function": "app.cluster.scaling:by_queued_images"},
    }
    # Pictures wait for others to join them, so that there is a queue before so quick a model.
    settings = make_settings(models, max_batch=64, max_wait_ms=1000)
    cluster.need_two_nodes()
    cluster.deploy(settings, engine={"autoscaling_config": scaling})
    assert cluster.replicas(ENGINE) == 1
    await under_load(cluster.url, 12, lambda: cluster.await_replicas(ENGINE, 2))
    await under_load(cluster.url, 1, lambda: cluster.await_replicas(ENGINE, 1))


def test_a_model_that_is_not_there_is_not_deployed(cluster: "LocalCluster", models: Path) -> None:
    cluster.need_two_nodes()
    with pytest.raises(RuntimeError, match="Deploying application default failed"):
        cluster.deploy(make_settings(models, resident=("other@1.0.0",)), fresh=True)


def test_ray_exports_the_metrics_of_the_contract(cluster: "LocalCluster", models: Path) -> None:
    cluster.deploy(make_settings(models), fresh=True)
    with cluster.client() as client:
        client.post("/predict", files=[("files", ("cell.bmp", CELLS[0])), ("files", ("notes.txt", b"no picture"))])
    wanted = {
        INGRESS: ("http_request_duration_seconds_bucket", "predictions_total", "decode_seconds_count", "ready"),
        ENGINE: ("queue_wait_seconds_count", "inference_seconds_bucket", "batch_size_sum", "queue_depth"),
    }
    deadline_s = time.monotonic() + 60
    while True:
        lines = cluster.exported().splitlines()
        missing = [
            (deployment, name)
            for deployment, names in wanted.items()
            for name in names
            if not any(
                line.startswith(f"ray_leukoscope_{name}{{") and f'deployment="{deployment}"' in line for line in lines
            )
        ]
        if not missing:
            return
        assert time.monotonic() < deadline_s, (missing, [line for line in lines if "leukoscope" in line])
        time.sleep(1)
