"""Whose weights a start file holds, as far as what lies beside it says."""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

# A run's configuration, beside its weights.
CONFIG_FILE: Final = "config.json"
# Beside weights that were taken out of an exported model (`training.unpack`): which one.
SOURCE_FILE: Final = "source.json"
NOT_STATED: Final = "not stated"


class Origin(NamedTuple):
    """What is known of a start file.

    Attributes:
        licence: Of the file, with attribution.
        weights: Licence alone.
    """

    licence: str
    weights: str


def origin_of(file: Path) -> Origin:
    """Say whose weights a file holds: those of a run, of an exported model, or unknown ones.

    Args:
        file: Named for ``model.start.file``; it need not be there.
    """
    for name, read in ((SOURCE_FILE, _of_model), (CONFIG_FILE, _of_run)):
        try:
            who, weights, start = read(json.loads((file.parent / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return Origin(f"{who} (licence: {weights}), from {start}", weights)
    return Origin(f"{NOT_STATED}: a file named on the command line", NOT_STATED)


def _of_model(source: dict[str, Any]) -> tuple[str, str, str]:
    """Of whom weights are, their licence, and that of their own start."""
    return source["model"], source.get("weights_licence", NOT_STATED), source["licence"]


def _of_run(settings: dict[str, Any]) -> tuple[str, str, str]:
    config = settings["config"]
    name, start = config["name"], config["model"]["start"]["licence"]
    # Runs of earlier versions state no licence.
    return f"the run {name}", config.get("licence", {}).get("weights", NOT_STATED), start
