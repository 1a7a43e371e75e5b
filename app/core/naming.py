"""What file names tell: which files are pictures, and C-NMC's names of cells with their subjects."""

import re
from typing import Final

PICTURE_SUFFIXES: Final = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"})

# HEM subjects carry an H (sometimes h): subject 3 and subject H3 are different people.
CELL_PATTERN: Final = r"UID_(?P<subject>H?\d+)_\d+_\d+_(?P<label>all|hem)"
CELL_NAME: Final = re.compile(CELL_PATTERN, re.IGNORECASE)
