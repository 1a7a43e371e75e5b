"""`python -m tests.bench`: run the benchmark and write `bench.md`, `bench.json` and `bench.png`."""

import argparse
import dataclasses
import io
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tests.bench.client import BadAnswerError
from tests.bench.contenders import ROOT, Contender, contenders
from tests.bench.processes import split_cpus
from tests.bench.report import markdown, plot
from tests.bench.rounds import Plan, StartError, ceiling, folder_run, linearity, measure
from training.data.drawn import draw_cell

_FORMATS: Final = ("PNG", "BMP", "JPEG")
_CELLS: Final = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return an exit status."""
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    plan = _plan(options)
    chosen = {name: contenders()[name] for name in options.only}
    rounds: list[dict[str, Any]] = []
    failed: set[str] = set()
    for number in range(options.rounds):
        one: dict[str, Any] = {"ceiling": ceiling(_bare_python(plan), plan)}
        # Each round in another order, so that none always follows the same one.
        names = list(chosen)[number % len(chosen) :] + list(chosen)[: number % len(chosen)]
        for name in (name for name in names if name not in failed):
            _say(f"round {number + 1} of {options.rounds}: {name}")
            try:
                one[name] = measure(chosen[name], plan)
            except (StartError, BadAnswerError, ExceptionGroup) as error:
                _say(f"{name} is left out: {error}")
                failed.add(name)
        rounds.append(one)
        _write(_result(options, rounds), options.out)  # so that a run which is cut short is not lost
    result = _result(options, rounds) | _extras(options, plan, [it for it in chosen.values() if it.name not in failed])
    _write(result, options.out)
    _say(f"{options.out / 'bench.md'} is written")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=8, help="of each measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--only", nargs="+", choices=list(contenders()), default=list(contenders()))
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="folder with active.json")
    parser.add_argument("--cells", type=Path, help="folder of real cells, in place of drawn ones")
    parser.add_argument(
        "--no-extras", action="store_true", help="no formats, no requests with many pictures, no folder"
    )
    parser.add_argument(
        "--linear", type=int, default=0, metavar="IMAGES", help="a long run too, over HTTP and by folder"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--environments", type=Path, default=ROOT / ".venv-bench", help="where the peers are installed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda with --only leukoscope")
    parser.add_argument("--here", action="store_true", help="run all in this environment; for tests")
    return parser.parse_args(arguments)


def _plan(options: argparse.Namespace) -> Plan:
    active = json.loads((options.models / "active.json").read_text(encoding="utf-8"))
    return Plan(
        models_dir=options.models,
        model=options.models / active["name"] / active["version"],
        environments=None if options.here else options.environments,
        connections=options.connections,
        seconds=options.seconds,
        pictures=pictures_in(options.cells),
        folder=options.out,
        device=options.device,
    )


def pictures_in(cells: Path | None) -> dict[str, list[bytes]]:
    """Encode some cells in each format: real ones, evenly over the folder, or drawn ones."""
    if cells is None:
        images = [draw_cell(("ALL", "HEM")[seed % 2], seed) for seed in range(_CELLS)]
    else:
        files = sorted(path for path in cells.rglob("*") if path.suffix.lower() in {".bmp", ".png"})
        images = [Image.open(file).convert("RGB") for file in files[:: max(1, len(files) // _CELLS)][:_CELLS]]
    return {name: [_encoded(image, name) for image in images] for name in _FORMATS}


def _encoded(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=name)
    return buffer.getvalue()


def _bare_python(plan: Plan) -> str:
    # The peers have ONNX Runtime's CPU build; this project's own environment has that for GPUs.
    return contenders()["fastapi" if plan.device == "cpu" else "leukoscope"].python(plan.environments)


def _extras(options: argparse.Namespace, plan: Plan, chosen: Sequence[Contender]) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if not options.no_extras:
        alone = dataclasses.replace(plan, connections=[1])
        _say("formats, and many pictures in one request")
        extras["formats"] = {one.name: _kinds(measure(one, alone, formats=True)) for one in chosen}
    ours = next((one for one in chosen if one.many), None)
    if ours is None:
        return extras
    if not options.no_extras:
        _say("a folder")
        sizes = [1000, options.linear] if options.linear else [1000]
        extras["folder"] = [folder_run(ours, plan, size) for size in sizes]
    if options.linear:
        _say(f"{options.linear} pictures over HTTP")
        extras["linearity"] = linearity(ours, plan, options.linear)
    return extras


def _kinds(measured: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = measured["formats"]
    if "many" in measured:
        kinds[f"{measured['many']['pictures']} PNG in one request"] = measured["many"]
    return kinds


def _result(options: argparse.Namespace, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    server, client = split_cpus()
    return {
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "machine": {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "processor": _processor(),
            "CPUs of the server": len(server),
            "client": "shares them" if server == client else "has one of its own",
            "python": platform.python_version(),
        },
        "seconds": options.seconds,
        "contenders": list(options.only),
        "rounds": list(rounds),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _write(result: dict[str, Any], out: Path) -> None:
    (out / "bench.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "bench.md").write_text(markdown(result), encoding="utf-8")
    try:
        plot(result, out / "bench.png")
    except ImportError:
        _say("no plot: matplotlib is not installed")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command's progress


if __name__ == "__main__":
    sys.exit(main())
