"""What was measured, as Markdown and as a plot; compared within each round, so that a drift of the machine cancels."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.contenders import contenders

_MIB = 1024 * 1024

Rounds = Sequence[dict[str, Any]]
"""Each a measurement by the contender's name, as of `rounds.measure`, and ``ceiling``."""


def markdown(result: dict[str, Any]) -> str:
    """Make the tables of a whole result, as `python -m tests.bench` writes it to JSON."""
    rounds: Rounds = result["rounds"]
    names = [name for name in result["contenders"] if all(name in one for one in rounds)]
    machine = ", ".join(f"{key}: {value}" for key, value in result["machine"].items())
    parts = [
        "# Benchmark",
        f"Made by `{result['command']}`. {machine}.",
        f"Medians of {len(rounds)} interleaved rounds of {result['seconds']:g} s each.",
        _loads(rounds, names),
        "## Compared within each round",
        _ratios(rounds, names),
        *_extras(result),
        "## Settings",
        "\n".join(f"- **{name}**: {contenders()[name].notes}" for name in names),
    ]
    return "\n\n".join(parts) + "\n"


def ratio(rounds: Rounds, over: Callable[[dict[str, Any]], float], under: Callable[[dict[str, Any]], float]) -> float:
    """Return the median over the rounds of the ratio of two figures of the same round."""
    return float(statistics.median(over(one) / under(one) for one in rounds))


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw throughput and 99th percentile over the number of connections."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only the plot needs it

    rounds: Rounds = result["rounds"]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    rate, tail = figure.subplots(1, 2)
    for name in (name for name in result["contenders"] if all(name in one for one in rounds)):
        counts = list(rounds[0][name]["loads"])
        style = "-o" if name.startswith("leukoscope") else "--s"
        for axes, key, scale in ((rate, "images_per_second", 1), (tail, "p99_s", 1000)):
            values = [_median(rounds, name, count, key) * scale for count in counts]
            axes.plot([int(count) for count in counts], values, style, label=name)
    for axes, label in ((rate, "pictures per second"), (tail, "99th percentile, ms")):
        axes.set(xscale="log", xlabel="connections", ylabel=label)
        axes.grid(visible=True, alpha=0.3)
    rate.axhline(statistics.median(one["ceiling"]["per_second"] for one in rounds), color="k", lw=0.8, ls=":")
    tail.set_yscale("log")
    rate.legend()
    figure.savefig(file, dpi=120)


def _median(rounds: Rounds, name: str, count: object, key: str) -> float:
    return float(statistics.median(one[name]["loads"][count][key] for one in rounds))


def _loads(rounds: Rounds, names: Iterable[str]) -> str:
    rows = []
    for name in names:
        memory = statistics.median(one[name]["rss_bytes"] for one in rounds) / _MIB
        start_s = statistics.median(one[name]["start_s"] for one in rounds)
        for count in rounds[0][name]["loads"]:
            rate, p50_s, p99_s, cpu_s = (
                _median(rounds, name, count, key) for key in ("images_per_second", "p50_s", "p99_s", "cpu_s_per_image")
            )
            rows.append(
                f"| {name} | {count} | {rate:.1f} | {p50_s * 1e3:.1f} | {p99_s * 1e3:.1f} | {cpu_s * 1e3:.1f} "
                f"| {memory:.0f} | {start_s:.1f} |"
            )
    return _table("| server | connections | pictures/s | p50 ms | p99 ms | CPU ms/picture | RSS MiB | start s |", rows)


def _ratios(rounds: Rounds, names: Sequence[str]) -> str:
    counts = list(rounds[0][names[0]]["loads"])
    busy, alone = ("16" if "16" in counts else counts[-1]), counts[0]

    def rate(name: str) -> Callable[[dict[str, Any]], float]:
        return lambda one: one[name]["loads"][busy]["images_per_second"]

    rows = []
    for name in names:
        ceilings = [
            ratio(rounds, rate(name), lambda one, which=which: one["ceiling"][which])  # type: ignore[misc]
            for which in ("per_second", "whole_per_second")
        ]
        lone = ratio(
            rounds,
            lambda one, name=name: one[name]["loads"][alone]["p50_s"],  # type: ignore[misc]
            lambda one: one["ceiling"]["decode_s"] + one["ceiling"]["run_s"],
        )
        peers = [
            f"{ratio(rounds, rate(name), rate(peer)):.2f}" if peer in names else "" for peer in ("fastapi", "mosec")
        ]
        rows.append(f"| {name} | {ceilings[0]:.2f} | {ceilings[1]:.2f} | {lone:.2f} | {' | '.join(peers)} |")
    return _table(
        f"| server | throughput at {busy} / ceiling | / ceiling of whole pictures | median at {alone} / (decode + run) "
        f"| throughput at {busy} / fastapi | / mosec |",
        rows,
    )


def _extras(result: dict[str, Any]) -> list[str]:
    parts = []
    if result.get("formats"):
        rows = [
            f"| {name} | {kind} | {one['images_per_second']:.1f} | {one['p99_s'] * 1e3:.1f} |"
            for name, kinds in result["formats"].items()
            for kind, one in kinds.items()
        ]
        parts += [
            "## Formats, and many pictures in one request",
            _table("| server | request | pictures/s | p99 ms |", rows),
        ]
    if result.get("folder"):
        rows = [
            f"| {one['images']} | {one['seconds']:.1f} | {one['per_second']:.1f} | {one['peak_rss_bytes'] / _MIB:.0f} |"
            for one in result["folder"]
        ]
        parts += [
            "## `leukoscope predict` on a folder, its start included",
            _table("| pictures | s | pictures/s | peak RSS MiB |", rows),
        ]
    if result.get("linearity"):
        rows = [
            f"| {one['images']} | {one['per_second']:.1f} | {one['rss_bytes'] / _MIB:.0f} |"
            for one in result["linearity"]
        ]
        parts += [
            "## One long run over HTTP",
            _table("| pictures so far | pictures/s since the last row | RSS MiB |", rows),
        ]
    return parts


def _table(head: str, rows: Sequence[str]) -> str:
    columns = head.count("|") - 1
    return "\n".join([head, "|---" * columns + "|", *rows])
