"""The folder of `--explain`: a PNG for each answered picture, under the picture's own path."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from app.folder.errors import StoppedError, UsageError

_UNSAFE: Final = re.compile(r"[^\w.\- ()+]|^\.+$")
_LONGEST: Final = 150


class HeatMaps:
    """A folder of heat-maps."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, if it is not there.

        Raises:
            UsageError: It can't be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--explain {folder}: can't be made: {error.strerror}") from error
        self._folder = folder

    def write(self, heat_maps: Iterable[tuple[str, bytes | None]]) -> None:
        """Write the heat-maps that are there, each whole or not at all.

        Args:
            heat_maps: A picture's key and its PNG.

        Raises:
            StoppedError: The disk takes no more.
        """
        for key, png in heat_maps:
            if png is None:
                continue
            path = self._folder / place(key)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(path.name + ".part")
                part.write_bytes(png)
                part.replace(path)
            except OSError as error:
                raise StoppedError(f"{path}: can't be written: {error.strerror}") from error


def place(key: str) -> Path:
    """Return where a picture's heat-map lies: always below the folder, whatever an archive names its members.

    A part of the path that had to be changed gets a few digits of its hash, so that no two fall together.
    """
    parts = [_safe(part) for part in key.split("/") if part not in {"", "."}]
    return Path(*parts[:-1], parts[-1] + ".png")


def _safe(part: str) -> str:
    safe = _UNSAFE.sub("_", part)[:_LONGEST]
    return safe if safe == part else f"{safe}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"
