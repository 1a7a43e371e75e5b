"""From bytes to predictions: order, isolation, deadlines, admission."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from app.core import imaging
from app.core.errors import DeadlineExceededError, InferenceError, QueueFullError, UndecodableImageError
from app.core.postprocess import Prediction
from app.core.spec import Manifest
from app.inference.batcher import Batcher
from app.inference.classifier import Classifier, Decoders, Upload
from app.inference.providers import Placement
from app.inference.session import Session
from app.metrics import Metrics
from tests.models import NAME, VERSION
from tests.service.harness import FakeSession, load, loaded, samples

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def manifest(models_dir: Path) -> Manifest:
    return Manifest.load(models_dir / NAME / VERSION)


@asynccontextmanager
async def classifying(
    session: Session, manifest: Manifest, queue_limit: int = 100
) -> AsyncIterator[tuple[Classifier, Metrics]]:
    metrics = Metrics()
    batcher = Batcher(metrics, queue_limit=queue_limit)
    batcher.start()
    decoders = Decoders(2, 1_000_000)
    classifier = Classifier(loaded(session, manifest), batcher, decoders, metrics)
    try:
        yield classifier, metrics
    finally:
        if isinstance(session, FakeSession):
            session.gate.set()
        await batcher.drain(5)
        decoders.close()


def uploads(cells: list[bytes]) -> list[Upload]:
    return [Upload(None, data) for data in cells]


async def test_answers_are_equal_singly_together_and_at_once(models_dir: Path, drawn_cells: list[bytes]) -> None:
    model = load(models_dir, Placement(device="cpu", threads=2, max_batch=4))
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


async def test_a_failing_model_is_a_plain_error_for_each_picture(manifest: Manifest, drawn_cells: list[bytes]) -> None:
    session = FakeSession()
    session.broken = True
    async with classifying(session, manifest) as (classifier, metrics):
        results = await classifier.classify(uploads([*drawn_cells[:3], b"text"]), 30)
    assert [type(result) for result in results] == [InferenceError] * 3 + [UndecodableImageError]
    assert "secret" not in str(results[0])
    counted = samples(metrics.text().decode())
    assert counted["leukoscope_admitted_total"] == 4
    assert counted['leukoscope_failed_total{reason="inference"}'] == 3
    assert counted['leukoscope_rejected_total{reason="undecodable-image"}'] == 1


async def test_a_small_request_does_not_wait_for_all_of_a_large_one(
    manifest: Manifest, drawn_cells: list[bytes]
) -> None:
    session = FakeSession(max_batch=2, delay_s=0.01)
    async with classifying(session, manifest, queue_limit=1000) as (classifier, _):
        large = asyncio.create_task(classifier.classify(uploads(drawn_cells[:1] * 200), 60))
        await session.has_begun()
        await classifier.classify(uploads(drawn_cells[1:2]), 60)
        behind = sum(len(batch) for batch in session.batches)
        assert not large.done()
        await large
    # What was decoded or waiting when it came, and not all 200.
    assert behind < 30


async def test_a_decoder_that_breaks_spoils_its_own_picture_only(
    manifest: Manifest, drawn_cells: list[bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaking(data: bytes, *, max_pixels: int) -> Image.Image:
        if data == b"break":
            raise MemoryError("secret internals")
        return decode(data, max_pixels=max_pixels)

    decode = imaging.decode
    monkeypatch.setattr(imaging, "decode", breaking)
    async with classifying(FakeSession(), manifest) as (classifier, _):
        results = await classifier.classify(uploads([b"break", drawn_cells[0]]), 30)
    assert [type(result) for result in results] == [UndecodableImageError, Prediction]
    assert "secret" not in str(results[0])
    assert "the decoder broke" in caplog.text
