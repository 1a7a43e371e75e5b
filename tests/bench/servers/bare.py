"""The ceiling: the time of decoding a picture and of running the model, with nothing around them, as JSON."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.core.imaging import decode, preprocess
from app.core.spec import INPUT_NAME
from app.core.windows import patches
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


def measure(pictures: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Measure decoding on one core and running on all of them, each for `seconds` per batch size over all pictures."""
    model = Model()
    spec = model.manifest.preprocessing
    each_s = seconds / len(pictures)
    images = [preprocess(decode(picture), spec) for picture in pictures]
    seen = [patch.pixels[0] for image in images for patch in patches(image[None], spec)]

    def run(image: NDArray[np.uint8], batch: int) -> float:
        stacked = np.stack([image] * batch)
        return median_s(lambda: model.session.run(None, {INPUT_NAME: stacked}), each_s) / batch

    batches = _GPU_BATCHES if os.environ["BENCH_DEVICE"] == "cuda" else _BATCHES
    measured = {
        "decode_s": statistics.mean(median_s(lambda one=one: preprocess(decode(one), spec), each_s) for one in pictures)  # type: ignore[misc]
    }
    for which, shown in (("", seen), ("whole_", images)):
        runs = {batch: statistics.mean(run(image, batch) for image in shown) for batch in batches}
        measured[f"{which}run_s"] = runs[1]
        measured[f"{which}best_run_s"] = min(runs.values())
    return measured


if __name__ == "__main__":
    encoded = [file.read_bytes() for file in sorted(Path(sys.argv[1]).iterdir())]
    print(json.dumps(measure(encoded, float(sys.argv[2]))))  # noqa: T201 - for the caller
