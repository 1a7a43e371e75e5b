"""What Ray costs: the same requests to one process, to Ray with our batches, and to Ray with Serve's own batches.

`python -m tests.cluster.overhead` starts all three on this machine, each with one CPU thread for the model and one for
decoding, asks them by turns, and prints medians over the rounds and the median ratio within a round.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.cluster.local import LocalCluster
from tests.service.harness import ROOT, ServerProcess, make_settings
from training.data.drawn import cell_bytes

# Ray after `local`, which sets what it reads when it is imported.
from ray import serve  # isort: skip

from app.cluster.ingress import ENGINE, INGRESS, EngineDeployment, IngressDeployment
from app.cluster.messages import Order, Results
from app.core.errors import LeukoscopeError
from app.inference.outputs import Outputs

CELL = cell_bytes("ALL", seed=0)


class BatchedByServe(EngineDeployment):
    """The same engine, whose batches Serve makes: calls that come while one runs go together."""

    async def run(self, order: Order, images: NDArray[np.uint8]) -> Results | LeukoscopeError:
        self._session = (await self._engine._shelf.get(order.ref)).session
        self._batch.set_max_batch_size(self._session.max_batch)
        return list(await asyncio.gather(*(self._batch(image) for image in images)))

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0)  # type: ignore[untyped-decorator]
    async def _batch(self, images: list[NDArray[np.uint8]]) -> list[Outputs]:
        outputs = await asyncio.to_thread(self._session.run, np.stack(images))
        return [outputs.row(index) for index in range(len(images))]


async def ask(url: str, requests: int, at_once: int, pictures: int) -> dict[str, float]:
    """Send requests and return the median latency in ms and the pictures answered a second."""
    waiting = iter(range(requests))
    took_s: list[float] = []
    files = [("files", ("cell.bmp", CELL))] * pictures
    async with httpx.AsyncClient(timeout=120) as client:

        async def one_after_another() -> None:
            for _ in waiting:
                began_s = time.perf_counter()
                response = await client.post(f"{url}/predict", files=files)
                assert response.status_code == 200, response.text
                took_s.append(time.perf_counter() - began_s)

        began_s = time.perf_counter()
        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        elapsed_s = time.perf_counter() - began_s
    return {"ms": statistics.median(took_s) * 1000, "pictures/s": requests * pictures / elapsed_s}


def measure(urls: Mapping[str, str], rounds: int, **load: int) -> dict[str, list[dict[str, float]]]:
    """Ask all by turns."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
    for number in range(rounds):
        order = list(urls)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            results[name].append(asyncio.run(ask(urls[name], **load)))
    return results


def told(results: Mapping[str, list[dict[str, float]]]) -> list[str]:
    """Make a table's lines: medians, and each one's ratio to the first within a round."""
    first = next(iter(results.values()))
    lines = []
    for name, rounds in results.items():
        ms, pace = (statistics.median(one[key] for one in rounds) for key in ("ms", "pictures/s"))
        more_ms = statistics.median(one["ms"] - base["ms"] for one, base in zip(rounds, first, strict=True))
        ratio = statistics.median(
            one["pictures/s"] / base["pictures/s"] for one, base in zip(rounds, first, strict=True)
        )
        lines.append(f"| {name} | {ms:.1f} | {more_ms:+.1f} | {pace:.1f} | {ratio:.2f} |")
    return lines


def deploy_with_serves_batches(settings: Any) -> None:
    settings = settings.model_copy(update={"allow_anonymous": True})
    engine = serve.deployment(BatchedByServe, name=ENGINE, max_ongoing_requests=4096)
    ingress = serve.deployment(serve.ingress()(IngressDeployment), name=INGRESS, max_ongoing_requests=4096)
    serve.run(ingress.bind(settings, engine.bind(settings)), name="batch", route_prefix="/batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=40, help="in each round")
    arguments = parser.parse_args()
    settings = make_settings(arguments.models, device="cpu").model_copy(update={"decode_threads": 1})
    fixed: dict[str, Any] = {"num_replicas": 1, "autoscaling_config": None}
    with tempfile.TemporaryDirectory() as folder:
        cluster = LocalCluster(Path(folder))
        try:
            cluster.need_two_nodes()
            cluster.deploy(settings, engine=fixed, ingress=fixed)
            deploy_with_serves_batches(settings)
            one = ServerProcess(
                Path(folder) / "log", models_dir=arguments.models, device="cpu", inference_threads=1, decode_threads=1
            )
            with one:
                urls = {"one process": one.url, "Ray": cluster.url, "Ray, Serve's batches": f"{cluster.url}/batch"}
                for at_once, pictures in ((1, 1), (16, 1), (2, 16)):
                    requests = max(at_once, arguments.requests // pictures)
                    measure(urls, 1, requests=requests, at_once=at_once, pictures=pictures)  # warm
                    results = measure(urls, arguments.rounds, requests=requests, at_once=at_once, pictures=pictures)
                    print(f"\n{at_once} at once, each with {pictures} picture(s):\n")  # noqa: T201 - its purpose
                    print("| way | ms | more | pictures/s | of one process |\n|---|---|---|---|---|")  # noqa: T201
                    print("\n".join(told(results)), flush=True)  # noqa: T201
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
