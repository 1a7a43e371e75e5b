"""Where a Chromium is, and how to start it."""

import os
import shutil
from typing import Any

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str | None:
    """Return the browser that `CHROMIUM` names, or the first on the PATH; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def chromium_options() -> dict[str, Any]:
    """Return the arguments of playwright's `launch`."""
    # Chromium's own sandbox does not run as root.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    return {"executable_path": find_chromium(), "args": ["--no-sandbox"] if root else []}
