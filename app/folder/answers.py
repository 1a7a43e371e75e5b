"""Who answers pictures: the protocol, and the classifier in this process."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from app.core.errors import ImageError, LeukoscopeError, NoExplanationError
from app.core.postprocess import Prediction
from app.folder.errors import StoppedError, UsageError
from app.inference.classifier import Answer as ModelAnswer
from app.inference.classifier import PictureError, Upload
from app.inference.engine import Engine, Serving
from app.inference.explain import Style, draw_png, evidence_of
from app.inference.registry import ModelRef, Registry
from app.metrics import Metrics
from app.settings import Settings

# Three batches on their way: one is read, one decoded, one in the model.
IN_FLIGHT: Final = 3
HEAT_MAP_STYLE: Final = Style.SIDE_BY_SIDE
_CHUNK: Final = 32
_NO_HURRY_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of some pictures, in their order.

    Attributes:
        model: What answered.
        results: A prediction, or what is wrong with the picture.
        heat_maps: A PNG for each prediction, None for the rest; empty if none were asked for.
    """

    model: ModelRef
    results: Sequence[Prediction | str]
    heat_maps: Sequence[bytes | None] = ()


class Answerer(Protocol):
    """Answers pictures, in an ``async with`` block."""

    @property
    def model(self) -> ModelRef:
        """The model that answers."""

    @property
    def chunk(self) -> int:
        """Most pictures to hand over at once."""

    async def __aenter__(self) -> Self:
        """Get ready.

        Raises:
            StoppedError: It can't.
        """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let everything go."""

    async def answer(self, pictures: Sequence[bytes]) -> Answer:
        """Answer some pictures, with heat-maps if it was made for them.

        Raises:
            StoppedError: The model or the service failed; nothing is wrong with the pictures.
            UsageError: Heat-maps are wanted, and the model gives none.
        """


class InProcess:
    """The service's own engine and classifier, without HTTP."""

    def __init__(self, settings: Settings, *, heat_maps: bool = False) -> None:
        self._settings = settings
        self._heat_maps = heat_maps
        self._engine = Engine(settings, Metrics(), Registry(settings.models_dir))
        self.chunk = max(1, min(_CHUNK, settings.queue_limit // IN_FLIGHT))

    @property
    def model(self) -> ModelRef:
        """The active model."""
        return self._engine.serving().model.installed.ref

    async def __aenter__(self) -> Self:
        """Load the active model."""
        try:
            await self._engine.start()
        except LeukoscopeError as error:
            await self._engine.drain()
            raise StoppedError(f"the model can't be used: {error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the engine."""
        await self._engine.drain()

    async def answer(self, pictures: Sequence[bytes]) -> Answer:
        """Answer some pictures with the classifier that serves `/predict`."""
        serving = self._engine.serving()
        uploads = [Upload(None, data) for data in pictures]
        try:
            answers = await serving.classifier.answer(uploads, _NO_HURRY_S)
            heat_maps = await asyncio.to_thread(self._draw, serving, pictures, answers) if self._heat_maps else ()
        except NoExplanationError as error:
            raise UsageError(f"--explain: {error}") from error
        except LeukoscopeError as error:
            raise StoppedError(f"the model failed: {error}") from error
        if not any(isinstance(answer, ModelAnswer | ImageError) for answer in answers):
            raise StoppedError(f"the model failed: {answers[0]}")
        results = [answer.prediction if isinstance(answer, ModelAnswer) else str(answer) for answer in answers]
        return Answer(serving.model.installed.ref, results, heat_maps)

    def _draw(
        self, serving: Serving, pictures: Sequence[bytes], answers: Sequence[ModelAnswer | PictureError]
    ) -> list[bytes | None]:
        model, spec = str(serving.model.installed.ref), serving.model.manifest.preprocessing
        most = self._settings.max_image_pixels
        return [
            draw_png(data, evidence_of(answer, model), spec, HEAT_MAP_STYLE, max_pixels=most)
            if isinstance(answer, ModelAnswer)
            else None
            for data, answer in zip(pictures, answers, strict=True)
        ]
