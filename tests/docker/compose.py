"""The Compose project as the tests run it: its own name, free ports, builds with the host's network."""

import json
import os
import secrets
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.service.harness import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGE = "leukoscope-test:cpu"


def docker(*arguments: str, check: bool = True, timeout_s: float = 1800, settings: dict[str, str] | None = None) -> str:
    """Run docker and return what it printed; without `check`, its errors too."""
    result = subprocess.run(  # noqa: S603 - our own arguments
        ["docker", *arguments],  # noqa: S607 - wherever it is installed
        cwd=ROOT,
        env=os.environ | (settings or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result.stdout if check else result.stdout + result.stderr


class Compose:
    """docker compose with the CPU file and an override of the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.project = f"leukoscope-test-{secrets.token_hex(4)}"
        self.port, self.prometheus_port = free_port(), free_port()
        self._settings = {
            "HTTP_PORT": str(self.port),
            "PROMETHEUS_PORT": str(self.prometheus_port),
            "LEUKOSCOPE_AUDIT_LOG": "/var/lib/leukoscope/audit.jsonl",
        }
        override = folder / "override.yml"
        # The host's network: proxies on localhost and the host's registries can then be reached from a build.
        network = os.environ.get("DOCKER_BUILD_NETWORK", "host")
        service = {"build": {"network": network}, "image": IMAGE}
        override.write_text(yaml.safe_dump({"services": {"leukoscope": service}}), encoding="utf-8")
        files = ("docker-compose.yml", "deploy/compose.cpu.yml", str(override))
        self._prefix = ["compose", "-p", self.project, *(word for file in files for word in ("-f", file))]

    def __call__(self, *arguments: str, check: bool = True) -> str:
        return docker(*self._prefix, *arguments, check=check, settings=self._settings)

    def container(self, service: str) -> str:
        return self("ps", "-aq", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        (found,) = json.loads(docker("inspect", self.container(service)))
        return dict(found)

    def python(self, script: str) -> str:
        """Run a script inside the service's container, as its own user."""
        return self("exec", "-T", "leukoscope", "python", "-c", script)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def query(self, expression: str) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query"
        answer = httpx.get(url, params={"query": expression}, timeout=30).json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def wait_ready(self, limit_s: float = 120) -> None:
        deadline_s = time.monotonic() + limit_s
        while True:
            try:
                with self.client() as client:
                    if client.get("/readyz").status_code == 200:
                        return
            except httpx.HTTPError:
                pass
            assert time.monotonic() < deadline_s, self("logs", "leukoscope")
            time.sleep(0.3)
