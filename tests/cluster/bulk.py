"""How fast a folder is scored on Ray: `leukoscope predict` with and without `--ray`, by turns.

`python -m tests.cluster.bulk CELLS` prints, as medians over the rounds, each way's whole time, its pictures a second
once the first rows are there, and the median ratio within a round. Both have all CPUs of this machine.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.service.harness import ROOT

_LOOK_EVERY_S: Final = 0.05


def score(cells: Path, out: Path, *words: str) -> tuple[float, float]:
    """Score a folder and return the seconds it took, and the pictures a second after the first rows."""
    command = [sys.executable, "-m", "app.cli", "predict", str(cells), "--out", str(out), *words]
    began_s = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603 - our own command
        first_rows, first_s = 0, 0.0
        while process.poll() is None:
            if not first_rows and (first_rows := _rows(out)):
                first_s = time.perf_counter()
            time.sleep(_LOOK_EVERY_S)
    ended_s = time.perf_counter()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return ended_s - began_s, (_rows(out) - first_rows) / (ended_s - first_s)


def _rows(out: Path) -> int:
    return max(0, out.read_bytes().count(b"\n") - 1) if out.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=Path, help="a folder of pictures")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    ways: dict[str, tuple[str, ...]] = {"one process": (), "Ray": ("--ray",)}
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for name in sorted(ways, reverse=bool(number % 2)):
                out = Path(folder) / f"{number}-{name}.csv"
                took[name].append(score(arguments.cells, out, *ways[name]))
    print("| way | s | pictures/s | of one process |\n|---|---|---|---|")  # noqa: T201 - its purpose
    for name, rounds in took.items():
        seconds, pace = (statistics.median(one[index] for one in rounds) for index in (0, 1))
        ratio = statistics.median(one[1] / base[1] for one, base in zip(rounds, took["one process"], strict=True))
        print(f"| {name} | {seconds:.0f} | {pace:.1f} | {ratio:.2f} |")  # noqa: T201


if __name__ == "__main__":
    main()
