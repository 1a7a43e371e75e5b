"""Request bodies as they stream in, counted; and work that is given up when the client hangs up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from app.inference.budget import Hold
from app.settings import Settings

_T = TypeVar("_T")


async def read_body(request: Request, settings: Settings, held: Hold) -> bytearray:
    """Read a whole body to memory; the arguments and errors are those of `read_chunks`."""
    data = bytearray()
    await read_chunks(request, settings, held, data.extend)
    return data


async def read_chunks(request: Request, settings: Settings, held: Hold, take: Callable[[bytes], None]) -> None:
    """Hand the body's chunks on as long as there is room for them.

    Args:
        request: Nothing of its body has been read yet; bytes and time are bounded before it comes here.
        settings: Bounds on bytes.
        held: Where the bytes are counted, as they come.
        take: Gets each chunk.

    Raises:
        ClientDisconnect: The client hung up.
        BodyTooLargeError: More than `settings.max_request_bytes`; the rest is not read.
        QueueFullError: All requests together hold too many bytes.
        DeadlineExceededError: The client sends too slowly.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) <= settings.max_request_bytes:
        held.check(int(announced))
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        chunk = message.get("body", b"")
        if chunk:
            held.add(len(chunk))
            take(chunk)


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, but cancel it when the client hangs up. The body must have been read.

    Raises:
        ClientDisconnect: The client hung up.
    """
    try:
        # A timeout that has no time: it is over when the client goes.
        async with asyncio.timeout(None) as patience:
            watcher = asyncio.create_task(_end_when_gone(request, patience))
            try:
                return await work
            finally:
                watcher.cancel()
    except TimeoutError:
        if not patience.expired():
            raise
        raise ClientDisconnect from None


async def _end_when_gone(request: Request, patience: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    patience.reschedule(asyncio.get_running_loop().time())
