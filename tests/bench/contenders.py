"""Who takes part: how each is set up, started and asked, and with what settings."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.client import Request

ROOT: Final = Path(__file__).resolve().parent.parent.parent
_REQUIREMENTS: Final = Path(__file__).parent / "requirements"
_SERVERS: Final = "tests.bench.servers"


@dataclass(frozen=True, slots=True)
class Contender:
    """One server.

    Attributes:
        name: In the tables.
        notes: Its settings, and why.
        command: What to run, after the interpreter; ``{port}`` is replaced.
        requirements: Its lock; None runs in this project's environment.
        path: Of its endpoint.
        request: Makes a request of pictures.
        many: Whether one request may have many pictures.
        variables: Of its environment.
    """

    name: str
    notes: str
    command: Sequence[str]
    requirements: str | None = None
    path: str = "/predict"
    request: Callable[[str, Sequence[bytes]], Request] = Request.form
    many: bool = False
    variables: dict[str, str] = field(default_factory=dict)

    def python(self, environments: Path | None) -> str:
        """Return its interpreter.

        Args:
            environments: Where the peers' environments are made; None runs all in this one.
        """
        if environments is None or self.requirements is None:
            return sys.executable if environments is None else str(ROOT / ".venv" / "bin" / "python")
        return str(_environment(environments, self.requirements))

    def ask(self, pictures: Sequence[bytes]) -> Request:
        """Make a request of pictures."""
        return self.request(self.path, pictures)


def contenders() -> dict[str, Contender]:
    """Return all of them, by their names."""
    serve = ("-m", "app.cli", "serve")
    onnx = {"LEUKOSCOPE_CPU_ENGINE": "onnxruntime"}
    openvino = {"LEUKOSCOPE_CPU_ENGINE": "openvino"}
    each = "a process for each CPU, each with one thread, no batching: the best of what was tried"
    every = [
        Contender("leukoscope", "Defaults: ONNX Runtime, fp32.", serve, many=True, variables=onnx),
        Contender("leukoscope-openvino", "LEUKOSCOPE_CPU_ENGINE=openvino, fp32.", serve, many=True, variables=openvino),
        Contender(
            "leukoscope-bf16",
            "LEUKOSCOPE_CPU_ENGINE=openvino LEUKOSCOPE_PRECISION=bf16.",
            serve,
            many=True,
            variables=openvino | {"LEUKOSCOPE_PRECISION": "bf16"},
        ),
        Contender(
            "leukoscope-int8",
            "LEUKOSCOPE_CPU_ENGINE=openvino LEUKOSCOPE_PRECISION=int8: the model's variant.",
            serve,
            many=True,
            variables=openvino | {"LEUKOSCOPE_PRECISION": "int8"},
        ),
        Contender(
            "fastapi",
            "FastAPI and ONNX Runtime, fp32: a plain `def` endpoint; ONNX Runtime has a thread for each CPU.",
            ("-m", f"{_SERVERS}.plain"),
            "fastapi",
        ),
        Contender(
            "mosec-windows",
            "As mosec, with leukoscope's decoding and windows: what the service itself is worth.",
            ("-m", f"{_SERVERS}.mosec_server", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "60000"),
            "mosec",
            path="/inference",
            request=Request.raw,
            variables={"BENCH_WINDOWS": "1"},
        ),
        Contender("litserve", f"LitServe, fp32: {each}.", ("-m", f"{_SERVERS}.litserve_server"), "litserve"),
        Contender(
            "mosec",
            f"Mosec, fp32: {each}; the body is the picture, not a form.",
            ("-m", f"{_SERVERS}.mosec_server", "--address", "127.0.0.1", "--port", "{port}", "--timeout", "60000"),
            "mosec",
            path="/inference",
            request=Request.raw,
        ),
        Contender(
            "bentoml",
            f"BentoML, fp32: {each}.",
            ("-m", "bentoml", "serve", f"{_SERVERS}.bentoml_server:Cells", "--host", "127.0.0.1", "--port", "{port}"),
            "bentoml",
        ),
    ]
    return {contender.name: contender for contender in every}


def variables(
    contender: Contender, *, port: int, models_dir: Path, model: Path, threads: int, device: str = "cpu"
) -> dict[str, str]:
    """Return a contender's whole environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEUKOSCOPE_")}
    ours = {"LEUKOSCOPE_PORT": str(port), "LEUKOSCOPE_MODELS_DIR": str(models_dir), "LEUKOSCOPE_DEVICE": device}
    bench = {"BENCH_PORT": str(port), "BENCH_MODEL": str(model), "BENCH_THREADS": str(threads), "BENCH_DEVICE": device}
    told = {"PYTHONPATH": str(ROOT), "BENTOML_DO_NOT_TRACK": "True", "MOSEC_LOG_LEVEL": "warning"}
    return kept | contender.variables | (ours if contender.name.startswith("leukoscope") else bench) | told


def _environment(environments: Path, name: str) -> Path:
    """Make a virtual environment from a lock, unless there is one of the same lock."""
    lock, folder = _REQUIREMENTS / f"{name}.txt", environments / name
    stamp = folder / "lock.txt"
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_bytes() != lock.read_bytes():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)  # noqa: S603
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
        subprocess.run([*install, "-r", str(lock)], check=True)  # noqa: S603
        stamp.write_bytes(lock.read_bytes())
    return python
