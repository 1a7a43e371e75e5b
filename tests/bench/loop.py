"""`python -m tests.bench.loop`: what a request costs the event loop's thread, here and in other checkouts."""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.__main__ import pictures_in
from tests.bench.client import BadAnswerError, Request, load, once
from tests.bench.contenders import ROOT, contenders, variables
from tests.bench.processes import Processes, split_cpus
from tests.bench.rounds import free_port

_START_LIMIT_S: Final = 180.0
_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run cost, for each request, in ms.

    Attributes:
        loop: CPU of the event loop's thread.
        process: CPU of all threads.
        median: From the request to its answer.
    """

    loop: float
    process: float
    median: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    checkouts = [*(path.resolve() for path in options.against), ROOT]
    request = Request.form("/predict", pictures_in(None)[options.format][:1])
    costs: dict[Path, list[Cost]] = {checkout: [] for checkout in checkouts}
    with ExitStack() as stack:
        servers = {checkout: _started(stack, checkout, options.models, request) for checkout in checkouts}
        for number in range(options.rounds):
            first = number % len(checkouts)  # none always follows the same one
            for checkout in checkouts[first:] + checkouts[:first]:
                processes, port = servers[checkout]
                costs[checkout].append(_cost(processes, port, request, options.connections, options.seconds))
    for checkout in checkouts:
        pairs = zip(costs[checkouts[0]], costs[checkout], strict=True)
        ratio = statistics.median(this.loop / first.loop for first, this in pairs)
        print(f"{checkout}: {_line(costs[checkout])}; loop {ratio:.2f} of the first one's")  # noqa: T201 - the answer


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loop", description=__doc__)
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], help="other checkouts, run in this environment too"
    )
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="folder with active.json")
    parser.add_argument("--format", choices=("PNG", "BMP", "JPEG"), default="PNG")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3)
    return parser.parse_args(arguments)


def _started(stack: ExitStack, checkout: Path, models: Path, request: Request) -> tuple[Processes, int]:
    port, contender = free_port(), contenders()["leukoscope"]
    cpus, _ = split_cpus()
    environment = variables(contender, port=port, models_dir=models, model=models, threads=len(cpus))
    log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
    command = [contender.python(None), *contender.command]
    processes = Processes(
        command, cwd=checkout, environment=environment | {"PYTHONPATH": str(checkout)}, cpus=cpus, log=log
    )
    stack.enter_context(processes)
    began_s = time.monotonic()
    while True:
        try:
            asyncio.run(once(port, request))
            break
        except (OSError, EOFError, BadAnswerError):
            if processes.ended or time.monotonic() - began_s > _START_LIMIT_S:
                raise SystemExit(f"{checkout} does not start:\n{log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(_PAUSE_S)
    asyncio.run(load(port, [request], connections=16, seconds=1))  # warm-up, not counted
    return processes, port


def _cost(processes: Processes, port: int, request: Request, connections: int, seconds: float) -> Cost:
    loop_s, process_s = processes.main_thread_s(), processes.cpu_s()
    seen = asyncio.run(load(port, [request], connections=connections, seconds=seconds))
    loop_s, process_s = processes.main_thread_s() - loop_s, processes.cpu_s() - process_s
    return Cost(loop_s / seen.answers * 1e3, process_s / seen.answers * 1e3, seen.quantile_s(0.5) * 1e3)


def _line(costs: Sequence[Cost]) -> str:
    loop, process, median = (
        statistics.median(getattr(cost, name) for cost in costs) for name in ("loop", "process", "median")
    )
    return f"{loop:.2f} ms of the loop's thread, {process:.1f} ms of CPU in all, answered in {median:.1f} ms"


if __name__ == "__main__":
    main()
