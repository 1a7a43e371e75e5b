"""From bytes to predictions: the one place where decoding, batching and postprocessing meet."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.core import imaging
from app.core.errors import DeadlineExceededError, ImageError
from app.core.postprocess import Prediction, postprocess
from app.core.spec import Manifest
from app.inference.batcher import Admission, Batcher
from app.inference.session import Outputs
from app.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Upload:
    """One uploaded picture: its name, if it came with one, and its bytes."""

    filename: str | None
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one picture: the prediction, and the model's outputs that it was made of."""

    prediction: Prediction
    outputs: Outputs


class Classifier:
    """Answers pictures with one model."""

    def __init__(
        self, manifest: Manifest, batcher: Batcher, metrics: Metrics, *, decode_threads: int, max_pixels: int
    ) -> None:
        """Make a classifier.

        Args:
            manifest: Of the model behind `batcher`.
            batcher: Where preprocessed pictures go; already started.
            metrics: Where answers are counted.
            decode_threads: How many pictures are decoded at once.
            max_pixels: Most pixels of one picture.
        """
        self._manifest = manifest
        self._batcher = batcher
        self._metrics = metrics
        self._max_pixels = max_pixels
        # Of its own, so that decoding never waits behind other work of the default executor.
        self._decoders = ThreadPoolExecutor(max_workers=decode_threads, thread_name_prefix="decode")

    async def classify(self, uploads: Sequence[Upload], timeout_s: float) -> list[Prediction | ImageError]:
        """Do as `answer`, and return the predictions alone."""
        results = await self.answer(uploads, timeout_s)
        return [result if isinstance(result, ImageError) else result.prediction for result in results]

    async def answer(
        self, pictures: Sequence[Upload | NDArray[np.uint8]], timeout_s: float
    ) -> list[Answer | ImageError]:
        """Answer the pictures of one request.

        Args:
            pictures: Files to decode, or preprocessed pictures of shape ``(size_px, size_px, 3)``,
                in any number that the queue admits.
            timeout_s: After it, what is not answered is given up.

        Returns:
            For each picture, in the same order, its answer, or what is wrong with it.

        Raises:
            QueueFullError: No room; nothing was decoded.
            NotReadyError: The service is draining.
            DeadlineExceededError: `timeout_s` passed.
            InferenceError: The model failed.
        """
        with self._batcher.reserve(len(pictures)) as admission:
            try:
                async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._answer(picture, admission)) for picture in pictures]
            except TimeoutError as error:
                raise DeadlineExceededError(f"The answer was not there within {timeout_s:g} s.") from error
            except ExceptionGroup as group_error:
                raise group_error.exceptions[0] from group_error
        return [task.result() for task in tasks]

    def close(self) -> None:
        """Let the threads go."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, picture: Upload | NDArray[np.uint8], admission: Admission) -> Answer | ImageError:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(picture, Upload):
                picture = await loop.run_in_executor(self._decoders, self._prepare, picture.data)
        except ImageError as error:
            admission.release()
            return error
        outputs = await admission.submit(picture)
        prediction = postprocess(outputs.logits, self._manifest)
        self._count(prediction)
        return Answer(prediction, outputs)

    def _prepare(self, data: bytes) -> NDArray[np.uint8]:
        with self._metrics.decode_seconds.time():
            image = imaging.decode(data, max_pixels=self._max_pixels)
            return imaging.preprocess(image, self._manifest.preprocessing)

    def _count(self, prediction: Prediction) -> None:
        self._metrics.predictions.labels(self._manifest.name, self._manifest.version, prediction.label).inc()
        self._metrics.confidence.observe(prediction.confidence)
        for reason in prediction.reasons:
            self._metrics.review.labels(reason).inc()
