"""The end of a server: who had connected is still answered, and is told that it was the last answer."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

from app.security.protocol import limited_protocol
from app.server import Server
from app.settings import Settings

pytestmark = pytest.mark.anyio
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Address = tuple[str, int]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def serving(delay_s: float = 0) -> AsyncIterator[tuple[Server, Address, Callable[[], Coroutine[Any, Any, None]]]]:
    """Run a server in this loop; give it, its address and what stops it."""
    config = uvicorn.Config(
        PlainTextResponse("here"),
        lifespan="off",
        log_config=None,
        http=limited_protocol(Settings()),
        ws="none",
        timeout_graceful_shutdown=10,
    )
    config.load()
    server = Server(config, lambda: None, delay_s=delay_s)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address: Address = listener.getsockname()
        await server.startup([listener])
        stopped = False

        async def stop() -> None:
            nonlocal stopped
            stopped = True
            await server.shutdown([listener])

        async with asyncio.timeout(20):
            yield server, address, stop
        if not stopped:
            await stop()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Ask, and return what comes until the server closes or keeps the connection."""
    writer.write(REQUEST)
    answer = await reader.readuntil(b"here")
    if b"connection: close" in answer:
        assert await reader.read() == b""
        writer.close()
    return answer


async def refused(address: Address) -> None:
    """Wait until nobody listens any more."""
    with suppress(ConnectionRefusedError):
        while True:
            _, writer = await asyncio.open_connection(*address)
            writer.close()


async def test_who_waits_in_the_listener_is_answered() -> None:
    async with serving() as (_, address, stop):
        # The loop makes no step between these: nobody has accepted the connection when the listener closes.
        client = socket.create_connection(address, timeout=10)
        client.sendall(REQUEST)
        await stop()
    with client, client.makefile("rb") as stream:
        answer = stream.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


@pytest.mark.parametrize("used", [True, False])
async def test_an_open_connection_may_bring_one_more_request(used: bool) -> None:
    async with serving() as (_, address, stop):
        reader, writer = await asyncio.open_connection(*address)
        if used:
            assert b"connection" not in await ask(reader, writer)
        stopping = asyncio.create_task(stop())
        await refused(address)
        answer = await ask(reader, writer)
        await stopping
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
async def test_nobody_keeps_it_from_stopping(sent: bytes) -> None:
    async with serving() as (server, address, stop):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(sent)
        await stop()
        assert await reader.read() == b""
        assert not server.server_state.connections
        writer.close()


async def test_once_a_stop_is_announced_each_answer_is_the_last() -> None:
    async with serving(delay_s=60) as (server, address, _):
        reader, writer = await asyncio.open_connection(*address)
        assert b"connection" not in await ask(reader, writer)
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.sleep(0)
        for connection in ((reader, writer), await asyncio.open_connection(*address)):
            assert b"connection: close" in await ask(*connection)
        assert not server.should_exit
