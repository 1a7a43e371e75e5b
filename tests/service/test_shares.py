"""Batches shared out over a CPU's threads, and which session a placement opens."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray

from app.core.errors import InferenceError
from app.core.spec import MODEL_FILE, Manifest
from app.inference.batcher import Batcher
from app.inference.opening import open_session
from app.inference.outputs import Outputs
from app.inference.providers import CPU_PROVIDER, Placement
from app.inference.session import OnnxSession
from app.inference.shares import SharingSession
from app.metrics import Metrics
from tests.models import NAME, SIZE_PX, VERSION
from tests.service.harness import assert_alike


class Recording:
    """Answers each picture with its first byte, and notes which thread ran how many."""

    provider = "RecordingProvider"
    max_batch = 8

    def __init__(self, meet: threading.Barrier | None = None, broken: int | None = None) -> None:
        self.meet = meet
        self.broken = broken
        self.runs: list[tuple[str, int]] = []
        self.ended = 0

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.runs.append((threading.current_thread().name, len(images)))
        if self.meet is not None:
            self.meet.wait(timeout=60)
        self.ended += 1
        if self.broken in images[:, 0, 0, 0]:
            raise InferenceError("broken on purpose")
        values = images[:, 0, 0, 0].astype(np.float32)
        return Outputs(np.stack([values, -values], axis=1), features=values[:, None])


def pictures(count: int) -> NDArray[np.uint8]:
    images = np.zeros((count, 4, 4, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


@pytest.mark.parametrize("count", range(2, 9))
def test_each_thread_gets_its_share_at_the_same_time(count: int) -> None:
    threads = 3
    narrow = Recording(threading.Barrier(min(threads, count)))  # passes only if all shares run at once
    outputs = SharingSession(Recording(), narrow, threads).run(pictures(count))
    assert outputs.logits[:, 0].tolist() == list(range(count))
    assert outputs.features is not None
    assert outputs.features[:, 0].tolist() == list(range(count))
    assert outputs.evidence is None
    sizes = [size for _, size in narrow.runs]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert len({thread for thread, _ in narrow.runs}) == min(threads, count)


def test_a_lone_picture_gets_all_threads() -> None:
    wide, narrow = Recording(), Recording()
    assert len(SharingSession(wide, narrow, 2).run(pictures(1))) == 1
    assert (len(wide.runs), narrow.runs) == (1, [])


@pytest.mark.parametrize("broken", [0, 5])
def test_a_share_that_fails_fails_the_batch_after_all_have_ended(broken: int) -> None:
    narrow = Recording(threading.Barrier(2), broken)
    session = SharingSession(Recording(), narrow, 2)
    with pytest.raises(InferenceError, match="on purpose"):
        session.run(pictures(6))
    assert narrow.ended == 2
    narrow.broken = None
    assert len(session.run(pictures(6))) == 6


def test_no_thread_is_left_after_a_batch() -> None:
    before = set(threading.enumerate())
    SharingSession(Recording(), Recording(), 3).run(pictures(3))
    assert set(threading.enumerate()) == before


def test_of_several_callers_each_has_a_thread() -> None:
    wide, narrow = Recording(), Recording(threading.Barrier(2))  # passes only if both run at once
    session = SharingSession(wide, narrow, 2, callers=2)
    with ThreadPoolExecutor(2) as callers:
        runs = [callers.submit(session.run, pictures(2)) for _ in range(2)]
        assert [run.result().logits[:, 0].tolist() for run in runs] == [[0, 1], [0, 1]]
    assert ([size for _, size in narrow.runs], wide.runs) == ([2, 2], [])


def test_a_picture_is_not_alone_while_another_one_runs_or_has_just_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Mock(return_value=100.0)
    monkeypatch.setattr("app.inference.shares.time.monotonic", clock)
    wide, narrow = Recording(threading.Barrier(2)), Recording()
    session = SharingSession(wide, narrow, 2, callers=2)
    with ThreadPoolExecutor(1) as caller:
        run = caller.submit(session.run, pictures(1))
        while not wide.runs:
            time.sleep(0.001)
        session.run(pictures(1))
        assert len(narrow.runs) == 1
        assert wide.meet is not None
        wide.meet.wait(timeout=60)
        run.result()
    session.run(pictures(1))
    assert len(narrow.runs) == 2
    clock.return_value += 1
    wide.meet = None
    session.run(pictures(1))
    assert (len(wide.runs), len(narrow.runs)) == (2, 2)


def test_a_caller_that_fails_is_counted_out() -> None:
    narrow = Recording(broken=0)
    session = SharingSession(Recording(broken=0), narrow, 2, callers=2)
    for count in (1, 2, 1):
        with pytest.raises(InferenceError, match="on purpose"):
            session.run(pictures(count))
    assert session._running == 0


def test_what_a_placement_opens(models_dir: Path) -> None:
    folder = models_dir / NAME / VERSION
    manifest = Manifest.load(folder)
    images = np.random.default_rng(0).integers(0, 256, size=(7, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    alone = open_session(folder / MODEL_FILE, manifest, Placement(device="cpu"))
    shared = open_session(folder / MODEL_FILE, manifest, Placement(device="cpu", threads=3))
    assert isinstance(alone, OnnxSession)
    assert isinstance(shared, SharingSession)
    assert (shared.provider, shared.max_batch) == (CPU_PROVIDER, 12)
    for count in (1, 2, 7):
        assert_alike(shared.run(images[:count]), alone.run(images[:count]))
    called = open_session(folder / MODEL_FILE, manifest, Placement(device="cpu", threads=3, callers=3))
    assert called.max_batch == 8
    assert_alike(called.run(images[:4]), alone.run(images[:4]))


def test_a_picture_that_is_known_to_be_alone_gets_all_threads_however_soon_it_comes() -> None:
    wide, narrow = Recording(), Recording()
    session = SharingSession(wide, narrow, 2, callers=2)
    for _ in range(3):
        session.run_alone(pictures(1))
    assert (len(wide.runs), narrow.runs) == (3, [])


def test_beside_one_that_was_given_up_no_picture_gets_all_threads() -> None:
    wide, narrow = Recording(threading.Barrier(2)), Recording()
    session = SharingSession(wide, narrow, 2, callers=2)
    with ThreadPoolExecutor(1) as caller:
        run = caller.submit(session.run_alone, pictures(1))
        while not wide.runs:
            time.sleep(0.001)
        session.run_alone(pictures(1))
        assert len(narrow.runs) == 1
        assert wide.meet is not None
        wide.meet.wait(timeout=60)
        run.result()


@pytest.mark.anyio
async def test_the_batcher_knows_whether_a_picture_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.inference.shares._QUIET_S", 3600)  # all has just ended
    wide, narrow = Recording(), Recording()
    session = SharingSession(wide, narrow, 2, callers=2)
    batcher = Batcher(Metrics(), workers=2, one_device=True, queue_limit=10)
    batcher.start()
    try:
        for _ in range(3):
            with batcher.reserve(1, (session, session)) as places:
                await places.submit(pictures(1)[0])
        assert (len(wide.runs), narrow.runs) == (3, [])
        with batcher.reserve(2, (session, session)) as places:
            await places.submit(pictures(1)[0])
        assert (len(wide.runs), len(narrow.runs)) == (3, 1)
    finally:
        await batcher.drain(5)
