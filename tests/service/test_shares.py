"""Batches shared out over a CPU's threads, and which session a placement opens."""

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.core.errors import InferenceError
from app.core.spec import MODEL_FILE, Manifest
from app.inference.opening import open_session
from app.inference.providers import CPU_PROVIDER, Placement
from app.inference.session import OnnxSession, Outputs
from app.inference.shares import SharingSession
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
