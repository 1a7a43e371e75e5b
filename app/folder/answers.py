"""Who answers pictures: the protocol, and the classifier in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

from app.core.errors import ImageError, LeukoscopeError
from app.core.postprocess import Prediction
from app.folder.errors import StoppedError
from app.inference.classifier import Upload
from app.inference.engine import Engine
from app.inference.registry import ModelRef, Registry
from app.metrics import Metrics
from app.settings import Settings

# Three batches on their way: one is read, one decoded, one in the model.
IN_FLIGHT: Final = 3
_CHUNK: Final = 32
_NO_HURRY_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of some pictures, in their order: a prediction, or what is wrong with the picture."""

    model: ModelRef
    results: Sequence[Prediction | str]


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
        """Answer some pictures.

        Raises:
            StoppedError: The model or the service failed; nothing is wrong with the pictures.
        """


class InProcess:
    """The service's own engine and classifier, without HTTP."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
            results = await serving.classifier.classify(uploads, _NO_HURRY_S)
        except LeukoscopeError as error:
            raise StoppedError(f"the model failed: {error}") from error
        if not any(isinstance(result, Prediction | ImageError) for result in results):
            raise StoppedError(f"the model failed: {results[0]}")
        return Answer(
            serving.model.installed.ref,
            [result if isinstance(result, Prediction) else str(result) for result in results],
        )
