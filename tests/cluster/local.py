"""A Ray cluster of two nodes on this machine, and the service on it."""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

# Before Ray is imported: nothing of these tests is reported to anybody, and Serve's proxy is as in deploy/ray/.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "app.cluster.proxy:middlewares"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name; by default replicas wait for all else on a busy machine
os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray takes this machine's address for 127.0.0.1
os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent.parent)

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster

from app.cluster.service import build
from app.inference.loader import OpenSession
from app.inference.opening import open_session as open_by_placement
from app.settings import Settings
from tests.service.harness import free_port

_APP: Final = "default"
_HOST: Final = "127.0.0.1"
_MEMORY: Final = 128 * 1024 * 1024
_START_S: Final = 120.0


def nodes(**head: Any) -> Cluster:
    """Start a head node, to which others can be added, all on the loopback alone."""
    arguments = {
        "num_cpus": 4,
        "node_ip_address": _HOST,
        "object_store_memory": _MEMORY,
        "temp_dir": tempfile.mkdtemp(prefix="ray-"),  # short, for the paths of sockets
        **head,
    }
    # Where Ray notes the cluster's address, though all else goes elsewhere; on a new machine it is missing.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    return Cluster(initialize_head=True, head_node_args=arguments)


def add_node(cluster: Cluster, cpus: int = 4) -> Any:
    """Add a node, and return what knows its processes."""
    return cluster.add_node(num_cpus=cpus, node_ip_address=_HOST, object_store_memory=_MEMORY)


class OutOfReach:
    """Stands for the application, which is in other processes: a test that reaches into it skips."""

    def __getattr__(self, name: str) -> Any:
        pytest.skip("reaches into the application's own process, and on Ray that is another one")


class LocalCluster:
    """The head node, which takes requests; and a second node, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cluster = nodes(include_dashboard=False)
        ray.init(address=self._cluster.address, _node_ip_address=_HOST, log_to_driver=False)
        self._workers: list[Any] = []
        self.port = free_port()
        self.url = f"http://{_HOST}:{self.port}"
        serve.start(http_options={"host": _HOST, "port": self.port, "location": "HeadOnly"})
        self._deployed: tuple[Settings, dict[str, Any]] | None = None

    def stop(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()

    def need_two_nodes(self) -> None:
        """Add a node unless there is one beside the head."""
        for attempt in range(3):
            if self._workers:
                return
            try:
                self._workers.append(add_node(self._cluster))
            except Exception:  # noqa: BLE001 - Ray gives a node half a minute to start, which a busy machine exceeds
                assert attempt < 2

    def kill_nodes(self) -> None:
        """Kill the added nodes as a loss of power would: no goodbye."""
        while self._workers:
            self._cluster.remove_node(self._workers.pop(), allow_graceful=False)

    def deploy(self, settings: Settings, *, fresh: bool = False, **options: dict[str, Any]) -> None:
        """Deploy the service, unless it runs with just these settings.

        Args:
            settings: Of the service.
            fresh: Whether its counters must be at zero.
            options: As of `build`.
        """
        settings = settings.model_copy(update={"allow_anonymous": True})
        if self._deployed == (settings, options) and not fresh:
            return
        if self._deployed is not None and fresh:
            serve.delete(_APP)
        self._deployed = None
        serve.run(build(settings, **options), name=_APP)
        self._deployed = (settings, options)
        self._await_ready()

    def replicas(self, deployment: str) -> int:
        """Count a deployment's replicas that run."""
        return int(serve.status().applications[_APP].deployments[deployment].replica_states.get("RUNNING", 0))

    def await_replicas(self, deployment: str, wanted: int, limit_s: float = _START_S) -> None:
        deadline_s = time.monotonic() + limit_s
        while self.replicas(deployment) != wanted:
            assert time.monotonic() < deadline_s, serve.status()
            time.sleep(0.2)

    def exported(self) -> str:
        """Return what Ray exports for Prometheus, of all nodes."""
        ports = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
        return "".join(httpx.get(f"http://{_HOST}:{port}/metrics", timeout=30).text for port in ports)

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            yield client

    @asynccontextmanager
    async def running(
        self, settings: Settings, *, wait: bool = True, open_session: OpenSession = open_by_placement
    ) -> AsyncIterator[tuple[OutOfReach, httpx.AsyncClient]]:
        """Take the place of `tests.service.harness.running`: the same service, on the cluster."""
        if not wait:
            pytest.skip("looks at the service before it is ready; Serve sends nothing to a replica that is not")
        if open_session is not open_by_placement:
            pytest.skip("gives the model a session of its own making, and on Ray the model is in another process")
        await asyncio.to_thread(self.deploy, settings)
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            yield OutOfReach(), client

    def _await_ready(self) -> None:
        deadline_s = time.monotonic() + _START_S
        with self.client() as client:
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline_s, serve.status()
                time.sleep(0.1)
