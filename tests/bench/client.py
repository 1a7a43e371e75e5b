"""A light HTTP client: it keeps a number of connections busy with one request, and notes each answer's time."""

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

_BOUNDARY: Final = b"leukoscope-bench-5f1b"
_GIVE_UP_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent again and again, whole as it goes over the wire."""

    wire: bytes

    @classmethod
    def form(cls, path: str, pictures: Sequence[bytes]) -> "Request":
        """Make a form with pictures in parts named ``file``."""
        part = b'--%b\r\nContent-Disposition: form-data; name="file"; filename="cell"\r\n\r\n%b\r\n'
        body = b"".join(part % (_BOUNDARY, picture) for picture in pictures) + b"--%b--\r\n" % _BOUNDARY
        return cls(_head(path, f"multipart/form-data; boundary={_BOUNDARY.decode()}", len(body)) + body)

    @classmethod
    def raw(cls, path: str, pictures: Sequence[bytes]) -> "Request":
        """Make one picture the body."""
        (picture,) = pictures
        return cls(_head(path, "application/octet-stream", len(picture)) + picture)


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of the client saw.

    Attributes:
        answers: How many came.
        seconds: From the first request to the last answer.
        latencies_s: Of each answer, rising.
    """

    answers: int
    seconds: float
    latencies_s: list[float]

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds

    def quantile_s(self, share: float) -> float:
        """Return the latency that this share of the answers keeps within."""
        return self.latencies_s[min(self.answers - 1, int(self.answers * share))]


class BadAnswerError(Exception):
    """A contender answered with something else than 200."""


async def once(port: int, request: Request) -> Any:
    """Send a request over a connection of its own and return the JSON that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return json.loads(await _exchange(reader, writer, request))
    finally:
        writer.close()


async def load(port: int, requests: Sequence[Request], *, connections: int, seconds: float) -> Load:
    """Keep so many connections busy for so long; each sends the next request when it has its answer.

    Args:
        port: Of the server, on this machine.
        requests: Taken in turn, by whichever connection is free.
        connections: How many.
        seconds: For how long.

    Raises:
        BadAnswerError: An answer was not 200.
    """
    latencies: list[float] = []
    turn = itertools.cycle(requests)
    began_s = time.perf_counter()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while (sent_s := time.perf_counter()) < began_s + seconds:
                await _exchange(reader, writer, next(turn))
                latencies.append(time.perf_counter() - sent_s)
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(connections):
            group.create_task(connection())
    return Load(len(latencies), time.perf_counter() - began_s, sorted(latencies))


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request) -> bytes:
    writer.write(request.wire)
    async with asyncio.timeout(_GIVE_UP_S):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length:" in head:
            body = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
        else:
            body = await _chunks(reader)
    if head.split(b" ", 2)[1] != b"200":
        raise BadAnswerError((head + body[:500]).decode(errors="replace"))
    return body


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()
    return body


def _head(path: str, media_type: str, length: int) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: bench", f"Content-Type: {media_type}", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()
