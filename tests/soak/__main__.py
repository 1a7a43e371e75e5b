"""`python -m tests.soak --minutes 5`: run, reconcile, report; exit status 1 if anything does not add up."""

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.models import NAME, write_models
from tests.service.harness import ADMIN_KEY, ROOT, ServerProcess, samples
from tests.soak.reconcile import complaints, memory_grows
from tests.soak.traffic import Seen, Traffic

_MIB = 1024 * 1024


async def soak(
    models_dir: Path, log: Path, *, seconds: float, connections: int, pause_s: float, seed: int, plain: bool = False
) -> dict[str, Any]:
    """Run mixed traffic against a server of its own, with changes of the model.

    Args:
        models_dir: With at least two models; they are served by turns.
        log: Where the server's log goes.
        seconds: How long.
        connections: Clients at once.
        pause_s: Between two changes of the model.
        seed: Of all that is drawn.
        plain: Only lone good pictures, to measure latencies.

    Returns:
        What was measured, and what does not add up under `complaints`.
    """
    folders = await asyncio.to_thread(lambda: sorted(models_dir.glob("*/*/")))
    choices = [{"name": folder.parent.name, "version": folder.name} for folder in folders]
    settings: dict[str, Any] = {
        "queue_limit": 64,
        "max_images_per_request": 32,
        "max_request_bytes": 32 * _MIB,
        "admin_keys": ADMIN_KEY.setting,
    }
    with ServerProcess(log, models_dir=models_dir, **settings) as server:
        traffic = Traffic(server.url, seed=seed, connections=connections, plain=plain)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            before = samples((await client.get("/metrics")).text)
            rss_mib: list[float] = []
            watching = asyncio.create_task(_watch_memory(server.process.pid, rss_mib))
            await asyncio.gather(traffic.run(seconds), traffic.switch(choices, pause_s, seconds))
            watching.cancel()
            after = await _quiet(client)
        code = await asyncio.to_thread(server.stop, signal.SIGTERM)
        text = server.log()
    found = complaints(traffic.seen, before, after)
    found += [problem for problem in [memory_grows(rss_mib)] if problem]
    found += [f"exit status {code}"] * (code != 0) + ["a traceback in the log"] * ("Traceback" in text)
    return _report(traffic.seen, rss_mib, found)


async def _watch_memory(pid: int, rss_mib: list[float]) -> None:
    status = Path(f"/proc/{pid}/status")
    while status.exists():  # noqa: ASYNC240 - it is no disk
        lines = status.read_text(encoding="ascii").splitlines()  # noqa: ASYNC240
        rss_mib.append(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024)
        await asyncio.sleep(0.5)


async def _quiet(client: httpx.AsyncClient) -> dict[str, float]:
    """Wait until nothing is under way and return the samples."""
    deadline_s = time.monotonic() + 30
    while True:
        now = samples((await client.get("/metrics")).text)
        if (now["leukoscope_queue_depth"] == 0 and now["leukoscope_queue_bytes"] == 0) or time.monotonic() > deadline_s:
            await asyncio.sleep(0.2)
            return samples((await client.get("/metrics")).text)
        await asyncio.sleep(0.1)


def _report(seen: Seen, rss_mib: list[float], found: list[str]) -> dict[str, Any]:
    during = [took for began, took in seen.latencies if _in_switch(began, took, seen.switches)]
    apart = [took for began, took in seen.latencies if not _in_switch(began, took, seen.switches)]
    return {
        "requests": sum(seen.statuses.values()),
        "abandoned": seen.abandoned,
        "by_status": dict(sorted(seen.statuses.items())),
        "pictures_answered": seen.answered,
        "switches": len(seen.switches),
        "latency_ms": {"during_switches": _quantiles(during), "otherwise": _quantiles(apart)},
        "rss_mib": {"first": rss_mib[:1], "median": statistics.median(rss_mib or [0]), "last": rss_mib[-1:]},
        "complaints": found,
    }


def _in_switch(began_s: float, took_s: float, switches: list[tuple[float, float]]) -> bool:
    return any(began_s < end and began_s + took_s > begin for begin, end in switches)


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {"count": len(seconds)}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"count": len(seconds), "p50": round(cuts[49] * 1000, 1), "p99": round(cuts[98] * 1000, 1)}


@contextlib.contextmanager
def two_models(tiny: bool) -> Iterator[Path]:
    """Make a folder with two models to switch between: the shipped one twice, or two tiny ones."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "models"
        if tiny:
            write_models(target)
            write_models(target, version="2.0.0", seed=4, active=False)
        else:
            _double(ROOT / "models", target)
        yield target


def _double(models: Path, target: Path) -> None:
    active = json.loads((models / "active.json").read_text(encoding="utf-8"))
    folder = models / active["name"] / active["version"]
    for version in (active["version"], "99.0.0"):
        copy = target / active["name"] / version
        shutil.copytree(folder, copy)
        manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8")) | {"version": version}
        (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    shutil.copy(models / "active.json", target)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--pause", type=float, default=15, help="seconds between two changes of the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="only lone good pictures, to measure latencies")
    parser.add_argument("--tiny", action="store_true", help=f"two versions of the model {NAME} of the tests")
    options = parser.parse_args()
    with two_models(options.tiny) as models_dir:
        report = asyncio.run(
            soak(
                models_dir,
                models_dir.parent / "log",
                seconds=options.minutes * 60,
                connections=options.connections,
                pause_s=options.pause,
                seed=options.seed,
                plain=options.plain,
            )
        )
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if report["complaints"] else 0


if __name__ == "__main__":
    sys.exit(main())
