"""The batcher with a fake session: sharing, waiting, cancelling, failing, draining."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager

import pytest

from app.core.errors import InferenceError, NotReadyError, QueueFullError
from app.inference.batcher import Batcher
from app.inference.room import Admission
from app.inference.session import Session
from app.metrics import Metrics
from tests.service.harness import BAD, NOT_FINITE, SHORT, FakeSession, picture, samples

pytestmark = pytest.mark.anyio


class Asked:
    """A batcher together with the one model that is asked of it."""

    def __init__(self, batcher: Batcher, session: FakeSession, workers: int = 1) -> None:
        self.batcher = batcher
        self.sessions: tuple[Session, ...] = (session,) * workers
        self.drain = batcher.drain

    def reserve(self, images: int) -> AbstractContextManager[Admission]:
        return self.batcher.reserve(images, self.sessions)

    @property
    def waiting(self) -> int:
        return sum(not item.outputs.done() for item in self.batcher._unanswered)


@asynccontextmanager
async def started(
    session: FakeSession, *, workers: int = 1, queue_limit: int = 1000, max_wait_ms: float = 0
) -> AsyncIterator[tuple[Asked, Metrics]]:
    metrics = Metrics()
    batcher = Batcher(metrics, workers=workers, one_device=True, queue_limit=queue_limit, max_wait_ms=max_wait_ms)
    batcher.start()
    try:
        yield Asked(batcher, session, workers), metrics
    finally:
        session.gate.set()
        await batcher.drain(5)


async def ask(batcher: Asked, value: int) -> float:
    with batcher.reserve(1) as admission:
        return float((await admission.submit(picture(value))).logits[0])


def value_of(metrics: Metrics, name: str) -> float:
    return samples(metrics.text().decode())[name]


async def waiting(batcher: Asked, count: int) -> None:
    """Let tasks run until `count` pictures are in the queue or in the model."""
    async with asyncio.timeout(5):
        while batcher.waiting != count:  # noqa: ASYNC110 - a test may poll
            await asyncio.sleep(0)


async def test_an_idle_batcher_runs_a_picture_at_once() -> None:
    session = FakeSession()
    async with started(session) as (batcher, metrics):
        began_s = time.perf_counter()
        assert await ask(batcher, 7) == 7
        assert time.perf_counter() - began_s < 2
        assert session.batches == [[7]]
        assert value_of(metrics, "leukoscope_queue_depth") == 0


async def test_pictures_that_come_while_a_batch_runs_share_the_next() -> None:
    session = FakeSession(max_batch=4)
    session.gate.clear()
    async with started(session) as (batcher, metrics):
        tasks = [asyncio.create_task(ask(batcher, 0))]
        await session.has_begun()
        tasks += [asyncio.create_task(ask(batcher, value)) for value in range(1, 7)]
        await waiting(batcher, 7)
        session.gate.set()
        assert [*await asyncio.gather(*tasks)] == [0, 1, 2, 3, 4, 5, 6]
        assert session.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert value_of(metrics, "leukoscope_batch_size_sum") == 7


async def test_max_wait_counts_from_the_first_picture() -> None:
    session = FakeSession()
    async with started(session, max_wait_ms=600) as (batcher, _):
        began_s = time.perf_counter()
        first = asyncio.create_task(ask(batcher, 1))
        await asyncio.sleep(0.3)
        second = asyncio.create_task(ask(batcher, 2))
        assert [*await asyncio.gather(first, second)] == [1, 2]
        assert session.batches == [[1, 2]]
        assert 0.58 < time.perf_counter() - began_s < 108


async def test_a_full_batch_does_not_wait() -> None:
    async with started(FakeSession(max_batch=2), max_wait_ms=30_000) as (batcher, _):
        began_s = time.perf_counter()
        assert [*await asyncio.gather(ask(batcher, 1), ask(batcher, 2))] == [1, 2]
        assert time.perf_counter() - began_s < 10


async def test_a_cancelled_picture_never_reaches_the_model() -> None:
    session = FakeSession()
    session.gate.clear()
    async with started(session) as (batcher, metrics):
        first = asyncio.create_task(ask(batcher, 1))
        await session.has_begun()
        second, third = asyncio.create_task(ask(batcher, 2)), asyncio.create_task(ask(batcher, 3))
        await waiting(batcher, 3)
        second.cancel()
        await asyncio.wait({second})
        session.gate.set()
        assert [*await asyncio.gather(first, third)] == [1, 3]
        assert second.cancelled()
        assert session.batches == [[1], [3]]
        assert value_of(metrics, "leukoscope_cancelled_total") == 1


async def test_a_picture_cancelled_in_the_model_does_no_harm() -> None:
    session = FakeSession()
    session.gate.clear()
    async with started(session) as (batcher, metrics):
        first = asyncio.create_task(ask(batcher, 1))
        await session.has_begun()
        first.cancel()
        await asyncio.wait({first})
        session.gate.set()
        assert await ask(batcher, 2) == 2
        assert value_of(metrics, "leukoscope_cancelled_total") == 1


async def test_a_failing_batch_fails_no_other() -> None:
    session = FakeSession(max_batch=2)
    session.gate.clear()
    async with started(session) as (batcher, _):
        tasks = [asyncio.create_task(ask(batcher, value)) for value in (1, 2)]
        await session.has_begun()
        tasks += [asyncio.create_task(ask(batcher, value)) for value in (BAD, 3, 4, 5)]
        await waiting(batcher, 6)
        session.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert session.batches == [[1, 2], [BAD, 3], [4, 5]]
    assert [results[0], results[1], results[4], results[5]] == [1, 2, 4, 5]
    for failure in results[2:4]:
        assert isinstance(failure, InferenceError)
        assert "secret" not in str(failure)


async def test_a_number_that_is_not_finite_fails_its_own_picture_only() -> None:
    session = FakeSession()
    async with started(session) as (batcher, _):
        results = await asyncio.gather(ask(batcher, NOT_FINITE), ask(batcher, 2), return_exceptions=True)
    assert session.batches == [[NOT_FINITE, 2]]
    assert isinstance(results[0], InferenceError)
    assert results[1] == 2


async def test_too_few_answers_are_a_failure() -> None:
    async with started(FakeSession()) as (batcher, _):
        with pytest.raises(InferenceError, match="0 answers for 1"):
            await ask(batcher, SHORT)
        assert await ask(batcher, 1) == 1


async def test_the_queue_is_bounded_by_pictures() -> None:
    async with started(FakeSession(), queue_limit=3) as (batcher, metrics):
        with batcher.reserve(2):
            assert value_of(metrics, "leukoscope_queue_depth") == 2
            with pytest.raises(QueueFullError), batcher.reserve(2):
                pass
            with batcher.reserve(1):
                pass
        assert await ask(batcher, 1) == 1
        assert value_of(metrics, "leukoscope_queue_limit") == 3


async def test_retry_after_follows_the_measured_rate() -> None:
    async with started(FakeSession(), queue_limit=4) as (batcher, _):
        batcher.batcher._workers[0].picture_s = 3.0
        with batcher.reserve(4), pytest.raises(QueueFullError) as caught, batcher.reserve(2):
            pass
        assert caught.value.retry_after_s == 6


async def test_an_answered_picture_gives_its_place_back_at_once() -> None:
    async with started(FakeSession(), queue_limit=2) as (batcher, _):
        with batcher.reserve(2) as admission:
            await admission.submit(picture(1))
            with batcher.reserve(1):
                pass


async def test_drain_lets_accepted_work_end() -> None:
    session = FakeSession(max_batch=1)
    session.gate.clear()
    async with started(session) as (batcher, _):
        tasks = [asyncio.create_task(ask(batcher, value)) for value in (1, 2, 3)]
        await session.has_begun()
        draining = asyncio.create_task(batcher.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError), batcher.reserve(1):
            pass
        session.gate.set()
        assert [*await asyncio.gather(*tasks)] == [1, 2, 3]
        await draining


async def test_drain_fails_what_does_not_end_in_time() -> None:
    session = FakeSession(max_batch=1)
    session.gate.clear()
    async with started(session) as (batcher, metrics):
        with batcher.reserve(1) as late:
            tasks = [asyncio.create_task(ask(batcher, value)) for value in (1, 2)]
            await session.has_begun()
            await batcher.drain(0.05)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, NotReadyError)
            with pytest.raises(NotReadyError):
                await late.submit(picture(3))
        session.gate.set()
        assert value_of(metrics, "leukoscope_queue_depth") == 0


async def test_failures_of_one_device_count_together_whoever_meets_them() -> None:
    async with started(FakeSession(max_batch=1), workers=3) as (batcher, _):
        for failed in (1, 2, 3, 4):
            with pytest.raises(InferenceError):
                await ask(batcher, BAD)
            assert batcher.batcher.failures == failed
        assert await ask(batcher, 7) == 7
        assert batcher.batcher.failures == 0
        with pytest.raises(InferenceError):
            await ask(batcher, BAD)
        batcher.batcher.forgive()
        assert batcher.batcher.failures == 0


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("seed", range(5))
async def test_every_picture_ends_exactly_once(seed: int, workers: int) -> None:
    rng = random.Random(seed)
    session = FakeSession(max_batch=5, delay_s=0.002)
    values = [rng.choice([*range(1, 200), BAD, NOT_FINITE]) for _ in range(150)]
    async with started(session, workers=workers) as (batcher, metrics):
        tasks = [asyncio.create_task(ask(batcher, value)) for value in values]
        for task in rng.sample(tasks, 50):
            asyncio.get_running_loop().call_later(rng.random() * 0.05, task.cancel)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
        for value, result in zip(values, results, strict=True):
            assert isinstance(result, asyncio.CancelledError | InferenceError) or result == value
        assert value_of(metrics, "leukoscope_queue_depth") == 0
        assert value_of(metrics, "leukoscope_cancelled_total") == cancelled
        assert batcher.waiting == 0
        assert value_of(metrics, "leukoscope_admitted_total") == len(values)
        failed = sum(isinstance(result, InferenceError) for result in results)
        counted = samples(metrics.text().decode())
        assert counted.get('leukoscope_failed_total{reason="inference"}', 0) == failed
    assert sum(len(batch) for batch in session.batches) <= len(values)
    assert len(values) - cancelled <= sum(len(batch) for batch in session.batches)
    assert all(1 <= len(batch) <= 5 for batch in session.batches)
