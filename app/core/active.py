"""`active.json`: which model is served."""

import json
import os
from pathlib import Path
from typing import Final

ACTIVE_FILE: Final = "active.json"


def write_active(models: Path, name: str, version: str) -> None:
    """Name in ``active.json`` the model that is to be served: whole or not at all.

    Args:
        models: The folder models/.
        name: Of the model.
        version: Of the model.

    Raises:
        OSError: The folder can't be written, or the disk is full; what was there is unchanged.
    """
    target = models / ACTIVE_FILE
    part = target.with_suffix(".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "version": version}, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
