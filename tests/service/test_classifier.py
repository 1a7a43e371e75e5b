"""From bytes to predictions: order, isolation, deadlines, admission."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.core.errors import DeadlineExceededError, ImageError, InferenceError, QueueFullError, UndecodableImageError
from app.core.postprocess import Prediction
from app.core.spec import Manifest
from app.inference.batcher import Batcher
from app.inference.classifier import Classifier, Upload
from app.inference.registry import ModelRef, Registry
from app.inference.session import Session
from app.metrics import Metrics
from tests.models import NAME, VERSION
from tests.service.harness import FakeSession, samples

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def manifest(models_dir: Path) -> Manifest:
    return Manifest.load(models_dir / NAME / VERSION)


@asynccontextmanager
async def classifying(
    session: Session, manifest: Manifest, queue_limit: int = 100
) -> AsyncIterator[tuple[Classifier, Metrics]]:
    metrics = Metrics()
    batcher = Batcher(session, metrics, queue_limit=queue_limit)
    batcher.start()
    classifier = Classifier(manifest, batcher, metrics, decode_threads=2, max_pixels=1_000_000)
    try:
        yield classifier, metrics
    finally:
        if isinstance(session, FakeSession):
            session.gate.set()
        await batcher.drain(5)
        classifier.close()


def uploads(cells: list[bytes]) -> list[Upload]:
    return [Upload(None, data) for data in cells]


async def test_answers_are_equal_singly_together_and_at_once(models_dir: Path, drawn_cells: list[bytes]) -> None:
    model = Registry(models_dir).load(ModelRef(NAME, VERSION), device="cpu", gpu_index=0, threads=2, max_batch=4)
    async with classifying(model.session, model.manifest) as (classifier, metrics):
        together = await classifier.classify(uploads(drawn_cells), 30)
        singly = [(await classifier.classify(uploads([cell]), 30))[0] for cell in drawn_cells]
        at_once = await asyncio.gather(*(classifier.classify(uploads([cell]), 30) for cell in drawn_cells))
        text = metrics.text().decode()
    assert together == singly == [results[0] for results in at_once]
    assert len({result.confidence for result in together if isinstance(result, Prediction)}) > 1
    answered = sum(value for name, value in samples(text).items() if name.startswith("leukoscope_predictions_total"))
    assert answered == 3 * len(drawn_cells)


async def test_a_bad_picture_spoils_no_other_and_keeps_its_place(manifest: Manifest, drawn_cells: list[bytes]) -> None:
    async with classifying(FakeSession(), manifest) as (classifier, metrics):
        results = await classifier.classify(uploads([b"text", drawn_cells[0], b"", drawn_cells[1]]), 30)
    assert [type(result) for result in results] == [
        UndecodableImageError,
        Prediction,
        UndecodableImageError,
        Prediction,
    ]
    assert samples(metrics.text().decode())["leukoscope_queue_depth"] == 0


async def test_after_the_deadline_all_is_given_up(manifest: Manifest, drawn_cells: list[bytes]) -> None:
    session = FakeSession(max_batch=1)
    session.gate.clear()
    async with classifying(session, manifest) as (classifier, metrics):
        with pytest.raises(DeadlineExceededError):
            await classifier.classify(uploads(drawn_cells[:3]), 1)
        session.gate.set()
        assert isinstance((await classifier.classify(uploads(drawn_cells[:1]), 30))[0], Prediction)
    assert len(session.batches) == 2
    assert samples(metrics.text().decode())["leukoscope_cancelled_total"] == 3


async def test_nothing_is_decoded_without_room(manifest: Manifest, drawn_cells: list[bytes]) -> None:
    async with classifying(FakeSession(), manifest, queue_limit=2) as (classifier, metrics):
        with pytest.raises(QueueFullError):
            await classifier.classify(uploads(drawn_cells[:3]), 30)
    assert samples(metrics.text().decode())["leukoscope_decode_seconds_count"] == 0


async def test_a_failing_model_is_one_plain_error(manifest: Manifest, drawn_cells: list[bytes]) -> None:
    session = FakeSession()
    session.broken = True
    async with classifying(session, manifest) as (classifier, _):
        with pytest.raises(InferenceError) as caught:
            await classifier.classify(uploads([*drawn_cells[:3], b"text"]), 30)
    assert "secret" not in str(caught.value)
    assert not isinstance(caught.value, ImageError)
