"""What file names tell: which files are pictures, and C-NMC's names of cells with their subjects."""

import re
from pathlib import PurePosixPath
from typing import Final

# Beside an archive's files, a Mac's notes about them.
MAC_NOTES: Final = "__MACOSX"
PICTURE_SUFFIXES: Final = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})

# HEM subjects carry an H (sometimes h): subject 3 and subject H3 are different people.
CELL_PATTERN: Final = r"UID_(?P<subject>H?\d+)_\d+_\d+_(?P<label>all|hem)"
CELL_NAME: Final = re.compile(CELL_PATTERN, re.IGNORECASE)


def is_picture(name: str) -> bool:
    """Tell by the name; ``._cell.bmp`` is a Mac's note about a file, no picture."""
    path = PurePosixPath(name)
    hidden = path.name.startswith(".") or MAC_NOTES in path.parts[:-1]
    return path.suffix.lower() in PICTURE_SUFFIXES and not hidden
