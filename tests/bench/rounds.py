"""One measurement of one contender: started, asked under several loads, and stopped."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.client import BadAnswerError, Request, load, once
from tests.bench.contenders import ROOT, Contender, variables
from tests.bench.processes import Processes, split_cpus

_START_LIMIT_S: Final = 180.0
_PAUSE_S: Final = 0.05
_MANY: Final = 64
_COMPARED: Final = "PNG"


class StartError(Exception):
    """A contender does not start; the message has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        models_dir: With `model` in it, as the service wants it.
        model: The folder of the model that all of them run.
        environments: Where the peers' environments are; None runs all in this one.
        connections: Numbers of connections.
        seconds: Of each measurement.
        pictures: Encoded pictures by format; PNG is among them and is what contenders are compared with.
        folder: For the contenders' output.
        device: ``cpu`` or ``cuda``; the peers are set up for the CPU only.
    """

    models_dir: Path
    model: Path
    environments: Path | None
    connections: Sequence[int]
    seconds: float
    pictures: dict[str, list[bytes]]
    folder: Path
    device: str = "cpu"

    def variables(self, contender: Contender, port: int) -> dict[str, str]:
        """Return a contender's environment; it has a thread for each of the server's CPUs."""
        threads = len(split_cpus()[0])
        return variables(
            contender,
            port=port,
            models_dir=self.models_dir,
            model=self.model,
            threads=threads,
            device=self.device,
        )


@contextmanager
def started(contender: Contender, plan: Plan, port: int) -> Iterator[tuple[Processes, float]]:
    """Start a contender and wait for its first answer; give its processes and the seconds that it took.

    Raises:
        StartError: It ended, or gave no answer in three minutes.
    """
    server_cpus, _ = split_cpus()
    command = [contender.python(plan.environments), *(part.format(port=port) for part in contender.command)]
    environment = plan.variables(contender, port)
    log = plan.folder / f"{contender.name}.log"
    began_s = time.perf_counter()
    with Processes(command, cwd=ROOT, environment=environment, cpus=server_cpus, log=log) as processes:
        while not _answers(port, contender.ask(plan.pictures[_COMPARED][:1])):
            if processes.ended or time.perf_counter() - began_s > _START_LIMIT_S:
                raise StartError(f"{contender.name} does not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(_PAUSE_S)
        yield processes, time.perf_counter() - began_s


def measure(contender: Contender, plan: Plan, *, formats: bool = False) -> dict[str, Any]:
    """Measure a contender once.

    Args:
        contender: Who.
        plan: What.
        formats: Whether to measure each picture format and many pictures in one request too.

    Returns:
        ``start_s``, ``rss_bytes`` and ``loads`` by number of connections; with `formats` also those.

    Raises:
        StartError: It does not start.
        BadAnswerError: It answered with something else than 200.
    """
    port = free_port()
    with started(contender, plan, port) as (processes, start_s):
        ask = _singly(contender, plan.pictures[_COMPARED])
        _loaded(processes, port, ask, max(plan.connections), plan.seconds / 4)  # warm-up, not counted
        loads = {str(count): _loaded(processes, port, ask, count, plan.seconds) for count in plan.connections}
        measured: dict[str, Any] = {"start_s": start_s, "loads": loads}
        if formats:
            measured["formats"] = {
                name: _loaded(processes, port, _singly(contender, pictures), 16, plan.seconds)
                for name, pictures in plan.pictures.items()
            }
        if formats and contender.many:
            pictures = plan.pictures[_COMPARED]
            many = contender.ask([pictures[index % len(pictures)] for index in range(_MANY)])
            measured["many"] = {"pictures": _MANY} | _loaded(processes, port, [many], 2, plan.seconds, _MANY)
        measured["rss_bytes"] = processes.rss_bytes()
    return measured


def linearity(contender: Contender, plan: Plan, images: int, parts: int = 10) -> list[dict[str, float]]:
    """Ask for so many pictures at 16 connections, and note rate and memory after each of the parts."""
    port, noted = free_port(), []
    with started(contender, plan, port) as (processes, _):
        ask = _singly(contender, plan.pictures[_COMPARED])
        answered = 0
        while answered < images:
            began = answered
            began_s = time.perf_counter()
            while answered - began < images / parts:
                answered += asyncio.run(load(port, ask, connections=16, seconds=1)).answers
            rate = (answered - began) / (time.perf_counter() - began_s)
            noted.append({"images": answered, "per_second": rate, "rss_bytes": processes.rss_bytes()})
    return noted


def folder_run(contender: Contender, plan: Plan, images: int) -> dict[str, float]:
    """Have `leukoscope predict` answer a folder of so many pictures."""
    cells = plan.folder / f"cells-{images}"
    cells.mkdir(exist_ok=True)
    pictures = plan.pictures[_COMPARED]
    for index in range(images):
        (cells / f"cell_{index:06}.png").write_bytes(pictures[index % len(pictures)])
    command = [contender.python(plan.environments), "-m", "app.cli", "predict", str(cells), "--fresh"]
    out = plan.folder / f"answers-{images}.csv"
    cpus, _ = split_cpus()
    environment = plan.variables(contender, port=1)
    peak, began_s = 0, time.perf_counter()
    with Processes(
        [*command, "--out", str(out)], cwd=ROOT, environment=environment, cpus=cpus, log=plan.folder / "folder.log"
    ) as processes:
        while not processes.ended:
            peak = max(peak, processes.rss_bytes())
            time.sleep(_PAUSE_S)
    seconds = time.perf_counter() - began_s
    rows = len(out.read_text(encoding="utf-8").splitlines()) - 1
    return {"images": images, "rows": rows, "seconds": seconds, "per_second": images / seconds, "peak_rss_bytes": peak}


def ceiling(python: str, plan: Plan) -> dict[str, float]:
    """Measure bare decoding and running, in a process of its own.

    Returns:
        Means over all pictures: ``decode_s``, ``run_s`` of a lone one and ``best_run_s`` per picture of the best
        batch, all on the server's CPUs, and the ``per_second`` that they would allow together; the same of whole
        pictures, where the model looks at less, as ``whole_...``.

    Raises:
        StartError: The model does not run.
    """
    cpus, _ = split_cpus()
    pictures = plan.folder / "bare"
    pictures.mkdir(exist_ok=True)
    for number, picture in enumerate(plan.pictures[_COMPARED]):
        (pictures / f"{number}.png").write_bytes(picture)
    out = plan.folder / "bare.log"
    out.write_bytes(b"")
    command = [python, "-m", "tests.bench.servers.bare", str(pictures), str(plan.seconds / 4)]
    bare = Contender("bare", "", ())
    environment = plan.variables(bare, port=1)
    with Processes(command, cwd=ROOT, environment=environment, cpus=cpus, log=out) as processes:
        while not processes.ended:
            time.sleep(_PAUSE_S)
    lines = out.read_text(encoding="utf-8").splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise StartError(f"{bare.name}: the model does not run:\n{lines[-10:]}")
    measured: dict[str, float] = json.loads(lines[-1])
    for which in ("", "whole_"):
        measured[f"{which}per_second"] = 1 / (measured[f"{which}best_run_s"] + measured["decode_s"] / len(cpus))
    return measured


def _singly(contender: Contender, pictures: Sequence[bytes]) -> list[Request]:
    """A request for each picture."""
    return [contender.ask([picture]) for picture in pictures]


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _loaded(
    processes: Processes, port: int, requests: Sequence[Request], connections: int, seconds: float, images: int = 1
) -> dict[str, float]:
    before_s = processes.cpu_s()
    seen = asyncio.run(load(port, requests, connections=connections, seconds=seconds))
    return {
        "images_per_second": seen.per_second * images,
        "p50_s": seen.quantile_s(0.5),
        "p99_s": seen.quantile_s(0.99),
        "cpu_s_per_image": (processes.cpu_s() - before_s) / (seen.answers * images),
        "answers": seen.answers,
    }


def _answers(port: int, request: Request) -> bool:
    try:
        asyncio.run(once(port, request))
    except (OSError, EOFError, BadAnswerError, TimeoutError):
        return False
    return True
