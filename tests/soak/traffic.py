"""Mixed traffic: good, bad, late and abandoned requests, drawn at random from a seed."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx

from tests.service.harness import AS_ADMIN
from training.data.drawn import cell_bytes

_BOUNDARY_BYTES = 1 << 20


@dataclass(slots=True)
class Seen:
    """What the clients saw.

    Attributes:
        statuses: Answers by status.
        abandoned: Requests whose client hung up, whatever became of them.
        lost: Requests that ended in neither an answer nor a hang-up of ours.
        answered: Pictures with a label.
        refused: Pictures with an error of their own, in answered requests.
        at_risk: Pictures of requests that ended without an answer to each: some may have been computed.
        latencies: When a lone good picture was asked for, and how long its answer took, in seconds.
        switches: Begin and end of each change of the model, in seconds.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    abandoned: int = 0
    lost: list[str] = field(default_factory=list)
    answered: int = 0
    refused: int = 0
    at_risk: int = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)
    switches: list[tuple[float, float]] = field(default_factory=list)


class Traffic:
    """Clients that send for a while and note what they see."""

    def __init__(self, url: str, *, seed: int, connections: int, plain: bool = False) -> None:
        """Prepare the cells.

        Args:
            url: Of the server.
            seed: Of the drawn cells and of every choice.
            connections: Clients at once.
            plain: Only lone good pictures, to measure latencies.
        """
        self.seen = Seen()
        self._url = url
        self._rng = random.Random(seed)
        self._connections = connections
        self._cells = [cell_bytes(label, seed + number) for number in range(4) for label in ("ALL", "HEM")]
        kinds: list[tuple[int, Callable[[httpx.AsyncClient], Awaitable[None]]]] = [
            (60, self._one),
            (8, self._many),
            (8, self._mixed),
            (6, self._unreadable),
            (4, self._malformed),
            (2, self._too_large),
            (6, self._late),
            (6, self._hang_up),
        ]
        self._kinds = kinds[:1] if plain else kinds

    async def run(self, seconds: float) -> None:
        """Send until the time is over and every request has ended."""
        end_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._client(number, end_s))

    async def switch(self, choices: list[dict[str, str]], pause_s: float, seconds: float) -> None:
        """Change the served model again and again, by turns."""
        end_s = time.monotonic() + seconds
        turn = 0
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as client:
            while time.monotonic() + pause_s < end_s:
                await asyncio.sleep(pause_s)
                turn += 1
                began_s = time.monotonic()
                response = await client.put("/models/active", json=choices[turn % len(choices)], headers=AS_ADMIN)
                if response.status_code != 200:
                    self.seen.lost.append(f"a change of the model: {response.text}")
                self.seen.switches.append((began_s, time.monotonic()))

    async def _client(self, number: int, end_s: float) -> None:
        weights, kinds = zip(*self._kinds, strict=True)
        kind = kinds[number % len(kinds)]  # each kind once, then as they are drawn
        async with httpx.AsyncClient(base_url=self._url, timeout=120) as client:
            while time.monotonic() < end_s:
                try:
                    await kind(client)
                except httpx.HTTPError as error:
                    self.seen.lost.append(repr(error))
                (kind,) = self._rng.choices(kinds, weights)

    async def _one(self, client: httpx.AsyncClient) -> None:
        began_s = time.monotonic()
        response = await self._post(client, [self._cell()])
        if response.status_code == 200:
            self.seen.latencies.append((began_s, time.monotonic() - began_s))

    async def _many(self, client: httpx.AsyncClient) -> None:
        await self._post(client, [self._cell() for _ in range(self._rng.randint(2, 24))])

    async def _mixed(self, client: httpx.AsyncClient) -> None:
        await self._post(client, [self._cell(), b"no picture", self._cell()[:5000], self._cell()])

    async def _unreadable(self, client: httpx.AsyncClient) -> None:
        await self._post(client, [self._rng.choice([b"", b"no picture", self._cell()[:1000]])])

    async def _malformed(self, client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": self._rng.choice(["multipart/form-data; boundary=x", "text/plain", "image/gif"])}
        self._note(await client.post("/predict", content=b"--y\r\nnonsense", headers=headers), 0)

    async def _too_large(self, client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "application/octet-stream"}
        self._note(await client.post("/predict", content=bytes(64 * _BOUNDARY_BYTES), headers=headers), 0)

    async def _late(self, client: httpx.AsyncClient) -> None:
        headers = {"X-Request-Timeout": f"{self._rng.uniform(0.001, 0.1):.4f}"}
        await self._post(client, [self._cell(), self._cell()], headers)

    async def _hang_up(self, client: httpx.AsyncClient) -> None:
        cells = [self._cell() for _ in range(self._rng.randint(1, 8))]
        try:
            async with asyncio.timeout(self._rng.uniform(0.001, 0.05)):
                await self._post(client, cells)
        except TimeoutError:
            self.seen.abandoned += 1
            self.seen.at_risk += len(cells)

    async def _post(
        self, client: httpx.AsyncClient, cells: list[bytes], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        files = [("files", ("cell.bmp", data)) for data in cells]
        response = await client.post("/predict", files=files, headers=headers)
        self._note(response, len(cells))
        return response

    def _note(self, response: httpx.Response, pictures: int) -> None:
        self.seen.statuses[response.status_code] += 1
        if response.status_code != 200:
            self.seen.at_risk += pictures
            return
        items = response.json()["predictions"]
        self.seen.answered += sum("label" in item for item in items)
        self.seen.refused += sum("error" in item for item in items)

    def _cell(self) -> bytes:
        return self._rng.choice(self._cells)
