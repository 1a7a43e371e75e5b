"""A request's id: the caller's own where it can be used, else a new one."""

import re
from typing import Final

from ulid import ULID

REQUEST_ID_HEADER: Final = "X-Request-ID"

_USABLE: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_from(wanted: str) -> str:
    """Return the id that the caller wants if it is short and plain; it stands in logs and headers."""
    return wanted if _USABLE.fullmatch(wanted) else str(ULID())
