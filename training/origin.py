"""Where a start file is from, as far as what lies beside it says: whose it is, and who taught it on what."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

# A run's configuration, beside its weights.
CONFIG_FILE: Final = "config.json"
# Beside weights that were taken out of an exported model (`training.unpack`): which one.
SOURCE_FILE: Final = "source.json"
NOT_STATED: Final = "not stated"

# What is not there, or not what it should be.
_AMISS: Final = (OSError, ValueError, KeyError, TypeError)


class Origin(NamedTuple):
    """What is known of a start file.

    Attributes:
        licence: Of the file, with attribution.
        weights: Licence alone.
    """

    licence: str
    weights: str


@dataclass(frozen=True)
class Ancestor:
    """A run that weights have come through.

    Attributes:
        tables: Its configuration, unchecked: it may be of an earlier version.
        index: That it was made from, if it lies on this machine.
    """

    tables: dict[str, Any]
    index: Path | None = None


def origin_of(file: Path) -> Origin:
    """Say whose weights a file holds: those of a run, of an exported model, or unknown ones.

    Args:
        file: Named for ``model.start.file``; it need not be there.
    """
    for name, read in ((SOURCE_FILE, _of_model), (CONFIG_FILE, _of_run)):
        try:
            who, weights, start = read(_beside(file, name))
        except _AMISS:
            continue
        return Origin(f"{who} (licence: {weights}), from {start}", weights)
    return Origin(f"{NOT_STATED}: a file named on the command line", NOT_STATED)


def ancestors(file: Path) -> Iterator[Ancestor]:
    """Yield the runs that a start file has come through, the last one first; none where nothing is known."""
    try:
        for entry in _beside(file, SOURCE_FILE)["lineage"]:
            yield Ancestor(dict(entry["configuration"]))
    except _AMISS:
        try:
            settings = _beside(file, CONFIG_FILE)
            run = Ancestor(dict(settings["config"]), Path(settings["index"]))
            start = run.tables["model"]["start"].get("file")
        except _AMISS:
            return
        yield run
        if start and Path(start).parent != file.parent:
            yield from ancestors(Path(start))


def _beside(file: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((file.parent / name).read_text(encoding="utf-8"))
    return found


def _of_model(source: dict[str, Any]) -> tuple[str, str, str]:
    """Of whom weights are, their licence, and that of their own start."""
    return source["model"], source.get("weights_licence", NOT_STATED), source["licence"]


def _of_run(settings: dict[str, Any]) -> tuple[str, str, str]:
    config = settings["config"]
    name, start = config["name"], config["model"]["start"]["licence"]
    # Runs of earlier versions state no licence.
    return f"the run {name}", config.get("licence", {}).get("weights", NOT_STATED), start
