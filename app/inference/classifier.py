"""From bytes to predictions: the one place where decoding, batching and postprocessing meet."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core import imaging
from app.core.errors import DeviceMemoryError, ImageError, InferenceError, UndecodableImageError
from app.core.postprocess import Prediction, postprocess
from app.inference.deadline import until
from app.inference.loader import LoadedModel
from app.inference.outputs import Outputs
from app.inference.runner import Admits, Places
from app.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded picture: its name, if it came with one, and its bytes."""

    filename: str | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one picture.

    Attributes:
        prediction: The label and how sure it is.
        outputs: The model's own outputs, without a batch axis.
    """

    prediction: Prediction
    outputs: Outputs


Picture = Upload | NDArray[np.uint8]
"""Encoded bytes, or the model's input as it is, shape ``(size_px, size_px, 3)``."""

PictureError = ImageError | InferenceError | DeviceMemoryError
"""What may be wrong with one picture and not with its neighbours."""


class Decoders:
    """Threads that decode pictures, shared by all models."""

    def __init__(self, threads: int, max_pixels: int) -> None:
        """Make the threads.

        Args:
            threads: How many pictures are decoded at once.
            max_pixels: Most pixels of one picture.
        """
        self.threads = threads
        self.max_pixels = max_pixels
        # Of its own, so that decoding never waits behind other work of the default executor.
        self.pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode")

    def close(self) -> None:
        """Let the threads go."""
        self.pool.shutdown(wait=False, cancel_futures=True)


class Classifier:
    """Answers pictures with one model."""

    def __init__(self, model: LoadedModel, runner: Admits, decoders: Decoders, metrics: Metrics) -> None:
        """Make a classifier.

        Args:
            model: What answers.
            runner: Where preprocessed pictures go; already started.
            decoders: Where pictures are decoded.
            metrics: Where answers are counted.
        """
        self._model = model
        self._runner = runner
        self._decoders = decoders
        self._metrics = metrics

    async def classify(self, pictures: Sequence[Picture], timeout_s: float) -> list[Prediction | PictureError]:
        """Answer the pictures of one request; as `answer`, without the model's own outputs."""
        answers = await self.answer(pictures, timeout_s)
        return [answer.prediction if isinstance(answer, Answer) else answer for answer in answers]

    async def answer(self, pictures: Sequence[Picture], timeout_s: float) -> list[Answer | PictureError]:
        """Answer the pictures of one request.

        Args:
            pictures: In any number that the queue admits.
            timeout_s: After it, what is not answered is given up.

        Returns:
            For each picture, in the same order, its answer, or why there is none.

        Raises:
            QueueFullError: No room; nothing was decoded.
            NotReadyError: The service is draining.
            DeadlineExceededError: `timeout_s` passed.
        """
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        meaning = f"The answer was not there within {timeout_s:g} s."
        with self._runner.reserve(len(pictures), self._model.sessions) as places:
            async with until(deadline_s, meaning):
                if len(pictures) == 1:  # most requests: no tasks of their own are wanted
                    return [await self._answer(pictures[0], places)]
                return await self._answer_all(pictures, places)

    async def _answer_all(self, pictures: Sequence[Picture], places: Places) -> list[Answer | PictureError]:
        answers: dict[int, Answer | PictureError] = {}
        pending = iter(enumerate(pictures))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(pictures), self._in_flight())):
                    group.create_task(self._work(pending, places, answers))
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from group_error
        return [answers[index] for index in range(len(pictures))]

    def _in_flight(self) -> int:
        """Pictures of one request that are decoded or wait at once.

        Enough to keep decoders and devices busy, and no more: the pictures of a small request
        must not wait until all of a large one are decoded.
        """
        return self._decoders.threads + 2 * sum(session.max_batch for session in self._model.sessions)

    async def _work(
        self,
        pending: Iterator[tuple[int, Picture]],
        places: Places,
        answers: dict[int, Answer | PictureError],
    ) -> None:
        for index, picture in pending:
            answers[index] = await self._answer(picture, places)

    async def _answer(self, picture: Picture, places: Places) -> Answer | PictureError:
        try:
            outputs = await places.submit(self._decoding(picture) if isinstance(picture, Upload) else picture)
        except ImageError as error:
            self._metrics.count_rejected(error.reason)
            return error
        except (InferenceError, DeviceMemoryError) as error:
            return error
        novelty = None if outputs.novelty is None else float(outputs.novelty)
        prediction = postprocess(outputs.logits, self._model.manifest, novelty)
        self._count(prediction)
        return Answer(prediction, outputs)

    def _decoding(self, upload: Upload) -> Future[NDArray[np.uint8]]:
        return self._decoders.pool.submit(self._prepare, upload.data)

    def _prepare(self, data: bytes) -> NDArray[np.uint8]:
        with self._metrics.decode_seconds.time():
            try:
                image = imaging.decode(data, max_pixels=self._decoders.max_pixels)
                return imaging.preprocess(image, self._model.manifest.preprocessing)
            except ImageError:
                raise
            except Exception as error:
                _LOG.exception("the decoder broke on a picture of %d bytes", len(data))
                raise UndecodableImageError("The picture can't be used: the decoder broke on it.") from error

    def _count(self, prediction: Prediction) -> None:
        manifest = self._model.manifest
        self._metrics.predictions.labels(manifest.name, manifest.version, prediction.label).inc()
        self._metrics.confidence.observe(prediction.confidence)
        if prediction.reasons:
            self._metrics.reviewed.labels(manifest.name, manifest.version).inc()
        for reason in prediction.reasons:
            self._metrics.review.labels(reason).inc()
