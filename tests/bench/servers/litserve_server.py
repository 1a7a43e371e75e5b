"""LitServe: a worker process for each CPU, with one thread, and no batching."""

import os
from typing import Any

import litserve as ls
from fastapi import Request

from tests.bench.servers.model import Model


class Cells(ls.LitAPI):  # type: ignore[misc]  # not installed where types are checked
    """Decodes and classifies."""

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        del device
        self.model = Model(threads=1)

    def decode_request(self, request: Request) -> bytes:
        """Take the picture out of the form."""
        # LitServe hands over the parsed form, whatever the annotation says; it takes no other annotation.
        data: bytes = request["file"].file.read()
        return data

    def predict(self, data: bytes) -> dict[str, Any]:
        """Answer one picture."""
        return self.model.answer(data)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Hand the answer on."""
        return output


if __name__ == "__main__":
    server = ls.LitServer(Cells(), accelerator="cpu", workers_per_device=int(os.environ["BENCH_THREADS"]))
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), generate_client_file=False, log_level="warning")
