"""Until when an answer is of use: work is cancelled then, and what is inside can ask how long it still has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

from app.core.errors import DeadlineExceededError

_DEADLINE_S: Final[ContextVar[float | None]] = ContextVar("leukoscope_deadline", default=None)


@asynccontextmanager
async def until(deadline_s: float | None, meaning: str) -> AsyncIterator[None]:
    """Cancel the block at a time; of blocks inside one another the earliest time counts.

    Args:
        deadline_s: On the event loop's clock; None for none.
        meaning: What to tell if it came.

    Raises:
        DeadlineExceededError: It came.
    """
    before_s = _DEADLINE_S.get()
    token = _DEADLINE_S.set(min((time_s for time_s in (before_s, deadline_s) if time_s is not None), default=None))
    try:
        async with asyncio.timeout_at(deadline_s):
            yield
    except TimeoutError as error:
        raise DeadlineExceededError(meaning) from error
    finally:
        _DEADLINE_S.reset(token)


def left_s() -> float | None:
    """Return the seconds that are left for the present work, at least 0; None if it has no deadline."""
    deadline_s = _DEADLINE_S.get()
    return None if deadline_s is None else max(0.0, deadline_s - asyncio.get_running_loop().time())
