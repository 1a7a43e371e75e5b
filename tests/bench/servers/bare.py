"""The ceiling: the time of decoding a picture and of running the model, with nothing around them, as JSON."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.core.imaging import decode, preprocess
from app.core.spec import INPUT_NAME
from tests.bench.servers.model import Model

_BATCHES = (1, 2, 4, 8)
_GPU_BATCHES = (1, 8, 16, 32)


def median_s(call: Callable[[], object], seconds: float) -> float:
    """Return the median time of a call that is repeated for so long, at least three times."""
    call()
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s or len(times) < 3:
        began_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_s)
    return statistics.median(times)


def measure(picture: bytes, seconds: float) -> dict[str, float]:
    """Measure decoding on one core and running on all of them, each for `seconds` per batch size."""
    model = Model()
    spec = model.manifest.preprocessing
    image = preprocess(decode(picture), spec)

    def run(batch: int) -> float:
        images = np.stack([image] * batch)
        return median_s(lambda: model.session.run(None, {INPUT_NAME: images}), seconds) / batch

    runs = {batch: run(batch) for batch in (_GPU_BATCHES if os.environ["BENCH_DEVICE"] == "cuda" else _BATCHES)}
    return {
        "decode_s": median_s(lambda: preprocess(decode(picture), spec), seconds),
        "run_s": runs[1],
        "best_run_s": min(runs.values()),
        "best_batch": min(runs, key=lambda batch: runs[batch]),
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]).read_bytes(), float(sys.argv[2]))))  # noqa: T201 - for the caller
