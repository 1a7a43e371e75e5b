"""Answer a listing of pictures batch by batch, several on their way at once, and write each row as it comes."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from app.core.postprocess import Prediction
from app.folder.answers import IN_FLIGHT, Answer, Answerer
from app.folder.errors import UsageError
from app.folder.heatmaps import HeatMaps
from app.folder.rows import Row
from app.folder.sinks import Sink
from app.folder.sources import Entry, Reader, UnreadableError
from app.folder.subjects import SubjectRule, Summary
from app.inference.registry import ModelRef

MIB: Final = 1024 * 1024
_CHUNK_BYTES: Final = 32 * MIB


class Work(Protocol):
    """Gets entries answered and their rows written, in an ``async with`` block."""

    @property
    def model(self) -> ModelRef:
        """The model that answers."""

    async def __aenter__(self) -> Self:
        """Get ready."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let everything go."""

    async def run(self, entries: Sequence[Entry], on_rows: Callable[[Sequence[Row]], None]) -> None:
        """Answer entries and write their rows."""


class Runner:
    """Brings entries, answers and rows together. What it holds in memory does not grow with their number."""

    def __init__(
        self,
        answerer: Answerer,
        reader: Reader,
        sink: Sink,
        subject_of: SubjectRule,
        heat_maps: HeatMaps | None = None,
    ) -> None:
        """Make a runner.

        Args:
            answerer: Who answers; the runner enters it, or it is entered already.
            reader: Reads the pictures.
            sink: Where rows go.
            subject_of: Whose cell it is.
            heat_maps: Where heat-maps go, if `answerer` gives them.
        """
        self._answerer = answerer
        self._reader = reader
        self._sink = sink
        self._subject_of = subject_of
        self._heat_maps = heat_maps

    @property
    def model(self) -> ModelRef:
        """The model that answers."""
        return self._answerer.model

    async def __aenter__(self) -> Self:
        """Get the answerer ready."""
        await self._answerer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the answerer go."""
        await self._answerer.__aexit__(kind, error, trace)

    async def run(self, entries: Sequence[Entry], on_rows: Callable[[Sequence[Row]], None]) -> None:
        """Answer entries and write their rows, in order.

        Whatever ends it early, the rows of all batches that were answered are written.

        Args:
            entries: Those that have no row yet.
            on_rows: Called with the rows of each batch, once they are written.

        Raises:
            StoppedError: The model or the service failed, or the disk is full.
        """
        running: deque[asyncio.Task[list[Row]]] = deque()

        async def write_oldest() -> None:
            rows = await running[0]
            running.popleft()
            self._sink.append(rows)
            on_rows(rows)

        try:
            for chunk in chunks(entries, self._answerer.chunk, _CHUNK_BYTES):
                if len(running) == IN_FLIGHT:
                    await write_oldest()
                running.append(asyncio.create_task(self._rows(chunk)))
            while running:
                await write_oldest()
        finally:
            await self._save(running, on_rows)

    async def _save(self, running: deque[asyncio.Task[list[Row]]], on_rows: Callable[[Sequence[Row]], None]) -> None:
        """Write what is answered, and give up the rest."""
        answered = [task for task in running if task.done() and not task.cancelled() and task.exception() is None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in answered:
            self._sink.append(task.result())
            on_rows(task.result())

    async def _rows(self, chunk: Sequence[Entry]) -> list[Row]:
        contents = await asyncio.to_thread(self._read, chunk)
        readable = [content for content in contents if isinstance(content, bytes)]
        answer = await self._answerer.answer(readable) if readable else Answer(self._answerer.model, [])
        if self._heat_maps is not None:
            keys = [entry.key for entry, content in zip(chunk, contents, strict=True) if isinstance(content, bytes)]
            # Before the rows: a picture that has its row has its heat-map too.
            await asyncio.to_thread(self._heat_maps.write, list(zip(keys, answer.heat_maps, strict=True)))
        results = iter(answer.results)
        return [
            self._row(entry, next(results) if isinstance(content, bytes) else content, answer.model)
            for entry, content in zip(chunk, contents, strict=True)
        ]

    def _read(self, chunk: Sequence[Entry]) -> list[bytes | str]:
        contents: list[bytes | str] = []
        for entry in chunk:
            try:
                contents.append(self._reader.read(entry))
            except UnreadableError as error:
                contents.append(str(error))
        return contents

    def _row(self, entry: Entry, result: Prediction | str, model: ModelRef) -> Row:
        subject = self._subject_of(entry.key)
        if isinstance(result, str):
            return Row(file=entry.key, subject=subject, error=result, model=model.name, version=model.version)
        return Row.answered(entry.key, subject, result, model.name, model.version)


def chunks(entries: Sequence[Entry], most: int, most_bytes: int) -> Iterator[list[Entry]]:
    """Split entries into batches of at most `most` pictures and, where one alone has no more, `most_bytes`."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        if chunk and (len(chunk) == most or size + entry.size > most_bytes):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += entry.size
    if chunk:
        yield chunk


def take_up(sink: Sink, summary: Summary) -> tuple[set[str], set[ModelRef]]:
    """Count the rows of an earlier run into `summary`.

    Returns:
        The files that have a row, and the models that answered them.
    """
    done: set[str] = set()
    models: set[ModelRef] = set()
    for row in sink.rows():
        done.add(row.file)
        summary.add(row)
        if row.model is not None and row.version is not None:
            models.add(ModelRef(row.model, row.version))
    return done, models


def check_same_model(earlier: set[ModelRef], now: ModelRef) -> None:
    """Refuse to mix the answers of two models in one table.

    Raises:
        UsageError: The rows that are there are another model's.
    """
    others = earlier - {now}
    if others:
        names = ", ".join(sorted(str(model) for model in others))
        raise UsageError(
            f"the output has rows by {names}, but {now} answers now; name another --out, or start anew with --fresh"
        )
