"""`X-Request-Timeout`: until when the client wants its answer."""

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Annotated, Final

from fastapi import Depends, Header
from starlette.requests import Request

from app.inference.deadline import until

TIMEOUT_HEADER: Final = "X-Request-Timeout"  # as FastAPI makes it of the parameter's name below, in any case


async def _deadline(
    request: Request,
    x_request_timeout: Annotated[
        float | None,
        Header(
            gt=0,
            le=3600,
            allow_inf_nan=False,
            description="Seconds from the request's arrival, its upload included, after which no answer is of use: "
            "then 504, and what is not yet computed is dropped. The service's own limit holds beside it.",
        ),
    ] = None,
) -> float | None:
    began_s: float = request.state.began_s
    return None if x_request_timeout is None else began_s + x_request_timeout


DeadlineDep = Annotated[float | None, Depends(_deadline)]
"""On the event loop's clock; None if the client has named none."""


def within(deadline_s: float | None) -> AbstractAsyncContextManager[None]:
    """Cancel the block at `deadline_s`, on the event loop's clock, if it is not None; see `until`."""
    if deadline_s is None:
        return nullcontext()
    return until(deadline_s, "The answer was not there within X-Request-Timeout.")
