"""The API key that commands send to a service."""

import os
from pathlib import Path

from app.folder.errors import UsageError
from app.settings import CLIENT_KEY_VARIABLE


def read_client_key(file: Path | None) -> str | None:
    """Read a key from a file, or else from the environment; None if there is none.

    Raises:
        UsageError: The file can't be read, or holds something else than a key.
    """
    if file is None:
        return os.environ.get(CLIENT_KEY_VARIABLE) or None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file}: can't be read: {error}") from error
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError(f"--api-key-file {file}: expected one line of printable ASCII")
    return key
