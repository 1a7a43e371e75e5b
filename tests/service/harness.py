"""What the service's tests share: a fake session, the application in this process, and in its own."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import httpx
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.types import Message

from app.core.spec import Manifest
from app.inference.batcher import Batcher
from app.inference.classifier import Classifier, Decoders
from app.inference.engine import Serving
from app.inference.loader import Errand, LoadedModel, Loader, OpenSession
from app.inference.opening import open_session as open_by_placement
from app.inference.outputs import Outputs
from app.inference.providers import Placement
from app.inference.registry import Installed, ModelRef, Registry
from app.inference.session import Session
from app.main import create_app
from app.security.keys import new_key
from app.services import Services
from app.settings import Settings
from tests.models import NAME, VERSION

ROOT = Path(__file__).resolve().parent.parent.parent
BAD, NOT_FINITE, SHORT = 255, 254, 253
ADMIN, ADMIN_KEY = new_key("admin")
AS_ADMIN = {"X-API-Key": ADMIN}


class FakeSession:
    """Answers each picture with its first byte; holds a batch while its gate is closed."""

    provider = "FakeProvider"

    def __init__(self, max_batch: int = 4, delay_s: float = 0) -> None:
        self.max_batch = max_batch
        self.delay_s = delay_s
        self.broken = False
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        values = images[:, 0, 0, 0]
        self.batches.append(values.tolist())
        self.begun.release()
        time.sleep(self.delay_s)
        assert self.gate.wait(20)
        if self.broken or BAD in values:
            raise RuntimeError("secret internals")
        logits = np.stack([values.astype(np.float32), np.zeros(len(values), np.float32)], axis=1)
        logits[values == NOT_FINITE] = np.nan
        return Outputs(logits[1:] if SHORT in values else logits)

    async def has_begun(self) -> None:
        """Wait until one more batch is in the model."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=20)


def picture(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), value, dtype=np.uint8)


def services_of(app: FastAPI) -> Services:
    services = app.state.services
    assert isinstance(services, Services)
    return services


class Begins(Protocol):
    """Something in which work begins."""

    async def has_begun(self) -> None:
        """Wait until one more piece of work is in it."""


async def hanging_up(
    app: FastAPI, session: Begins, path: str, body: bytes, headers: list[tuple[bytes, bytes]]
) -> list[Message]:
    """Post a body, hang up once it is in the model, and return what was sent back."""
    hung_up = asyncio.Event()
    incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [*headers, (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    request = asyncio.create_task(app(scope, receive, send))
    await session.has_begun()
    hung_up.set()
    await request
    return sent


def loader_of(models_dir: Path, *placements: Placement, open_session: OpenSession = open_by_placement) -> Loader:
    return Loader(Registry(models_dir), placements or [Placement(device="cpu", max_batch=2)], open_session)


def run_here(_worker: int, errand: Errand) -> None:
    """Do what a worker would, in this thread."""
    errand()


def load(
    models_dir: Path,
    *placements: Placement,
    ref: ModelRef | None = None,
    open_session: OpenSession = open_by_placement,
) -> LoadedModel:
    """Load a model as the service does, without a worker."""
    loader = loader_of(models_dir, *placements, open_session=open_session)
    return loader.load(ref or ModelRef(NAME, VERSION), run_here)


def loaded(session: Session, manifest: Manifest) -> LoadedModel:
    """Give a session the look of a loaded model."""
    installed = Installed(ModelRef(manifest.name, manifest.version), manifest, {}, None)
    return LoadedModel(installed, manifest, (session,), manifest.precision)


def assert_alike(answered: Outputs, expected: Outputs) -> None:
    """Compare all that two sessions say of the same pictures."""
    np.testing.assert_allclose(answered.logits, expected.logits, rtol=0, atol=1e-4)
    for ours, theirs in ((answered.features, expected.features), (answered.evidence, expected.evidence)):
        assert ours is not None
        assert theirs is not None
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def serve_with(app: FastAPI, session: FakeSession, queue_limit: int = 4) -> None:
    """Put a fake session where the model is."""
    services = services_of(app)
    model = loaded(session, services.engine.serving().model.manifest)
    batcher = Batcher(services.metrics, queue_limit=queue_limit)
    batcher.start()
    services.engine._active = Serving(model, Classifier(model, batcher, Decoders(1, 1_000_000), services.metrics))


@asynccontextmanager
async def running(
    settings: Settings, *, wait: bool = True, open_session: OpenSession = open_by_placement
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """Run the application in this process; `wait` until its model is loaded or has failed."""
    app = create_app(settings, open_session=open_session)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=30) as client:
            while wait and services_of(app).engine.state == "starting":  # noqa: ASYNC110 - a test may poll
                await asyncio.sleep(0.005)
            yield app, client


def make_settings(models_dir: Path, **values: Any) -> Settings:
    return Settings(models_dir=models_dir, inference_threads=1, decode_threads=2, **values)


def samples(text: str) -> dict[str, float]:
    """Parse Prometheus text: sample with its labels → value."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**settings: object) -> dict[str, str]:
    own = {f"LEUKOSCOPE_{name.upper()}": str(value) for name, value in settings.items()}
    return {name: value for name, value in os.environ.items() if not name.startswith("LEUKOSCOPE_")} | own


def run_cli(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class ServerProcess:
    """`leukoscope serve` as a process of its own, on a free port."""

    def __init__(
        self,
        log: Path,
        *,
        module: str = "app.cli",
        variables: dict[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.port = int(str(settings.pop("port", None) or free_port()))
        self.settings = settings
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        log.write_bytes(b"")
        # Through a pipe, so that a server which can write no file still has its say.
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", module, "serve"],
            cwd=ROOT,
            env=environment(port=self.port, **settings) | (variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._reader = threading.Thread(target=self._copy_log)
        self._reader.start()

    def __enter__(self) -> Self:
        deadline_s = time.monotonic() + 30
        while not re.search(r"Leukoscope is ready on ", self.log()):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, self.log()
            time.sleep(0.05)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()

    def _copy_log(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe, self._log.open("ab", buffering=0) as file:
            for line in pipe:
                file.write(line)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=20)
        self._reader.join()
        return code

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, timeout=60) as client:
            yield client
