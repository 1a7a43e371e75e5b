"""Request bodies as they stream in: bounded in bytes and in time, and given up when the client hangs up."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from app.core.errors import BodyTooLargeError, DeadlineExceededError
from app.inference.budget import Hold
from app.settings import Settings

_T = TypeVar("_T")


async def read_body(request: Request, settings: Settings, held: Hold) -> bytearray:
    """Read a whole body to memory; the arguments and errors are those of `bounded`."""
    data = bytearray()
    async with aclosing(bounded(request, settings, held)) as stream:
        async for chunk in stream:
            data += chunk
    return data


async def bounded(request: Request, settings: Settings, held: Hold) -> AsyncGenerator[bytes, None]:
    """Yield the body's chunks; stop at the first byte too many, or when the client falls silent.

    Args:
        request: Nothing of its body has been read yet.
        settings: Bounds on bytes and time.
        held: Where the bytes are counted, as they come.

    Raises:
        BodyTooLargeError: More than `settings.max_request_bytes`; the rest is not read.
        QueueFullError: All requests together hold too many bytes.
        DeadlineExceededError: The client stopped sending for `settings.request_timeout_s`.
    """
    limit = settings.max_request_bytes
    too_large = f"The request has more than {limit:,} bytes."
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        if int(announced) > limit:
            raise BodyTooLargeError(too_large)
        held.check(int(announced))
    received = 0
    async with aclosing(request.stream()) as chunks:
        while True:
            try:
                async with asyncio.timeout(settings.request_timeout_s):
                    chunk = await anext(chunks, None)
            except TimeoutError as error:
                raise DeadlineExceededError(
                    f"No byte of the request came for {settings.request_timeout_s:g} s."
                ) from error
            if chunk is None:
                return
            received += len(chunk)
            if received > limit:
                raise BodyTooLargeError(too_large)
            held.add(len(chunk))
            yield chunk


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work`, but cancel it when the client hangs up. The body must have been read.

    Raises:
        ClientDisconnect: The client hung up.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
        # What the work raised knows this frame; a frame that knew it too would keep the request in memory.
        del task, gone


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
