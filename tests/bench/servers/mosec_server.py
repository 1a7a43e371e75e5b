"""Mosec: a worker process for each CPU, with one thread, and no batching. The picture is the request's body."""

import os
from typing import Any

from mosec import Server, Worker

from tests.bench.servers.model import Model


class Cells(Worker):  # type: ignore[misc]  # not installed where types are checked
    """Decodes and classifies."""

    def __init__(self) -> None:
        self.model = Model(threads=1)

    def deserialize(self, data: bytes) -> bytes:
        """Leave the body as it is; JSON is Mosec's default."""
        return data

    def forward(self, data: bytes) -> dict[str, Any]:
        """Answer one picture."""
        return self.model.answer(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Cells, num=int(os.environ["BENCH_THREADS"]))
    server.run()
