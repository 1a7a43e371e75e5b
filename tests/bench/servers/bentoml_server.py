"""BentoML: a worker process for each CPU, with one thread, and no batching."""

import os
from pathlib import Path
from typing import Any

import bentoml

from tests.bench.servers.model import Model


@bentoml.service(workers=int(os.environ["BENCH_THREADS"]), metrics={"enabled": False}, traffic={"timeout": 60})
class Cells:
    """Decodes and classifies."""

    def __init__(self) -> None:
        self.model = Model(threads=1)

    @bentoml.api  # type: ignore[untyped-decorator]  # not installed where types are checked
    def predict(self, file: Path) -> dict[str, Any]:
        """Answer one picture."""
        return self.model.answer(file.read_bytes())
