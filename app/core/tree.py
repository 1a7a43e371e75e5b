"""Walk a folder to its bottom: links followed, hidden folders left out, and never round in a circle."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from app.core.naming import MAC_NOTES


def walk(top: Path, on_error: Callable[[OSError], None]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with the names of its files, in the order of names.

    Args:
        top: Where to begin; it may be hidden itself.
        on_error: Told of each folder that can't be read; its `filename` says which.
    """
    seen: set[str] = set()
    for folder, folders, files in os.walk(top, onerror=on_error, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != MAC_NOTES)
        yield Path(folder), sorted(files)
