"""Read the pictures out of a request: a form or a raw body, bounded while it streams."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.core.errors import (
    MalformedFormError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from app.inference.budget import Hold
from app.inference.classifier import Upload
from app.routes.bodies import counted, read_body
from app.settings import Settings

FORM_TYPE: Final = "multipart/form-data"
RAW_TYPES: Final = (
    "image/bmp",
    "image/x-ms-bmp",
    "image/png",
    "image/jpeg",
    "image/tiff",
    "image/webp",
    "application/octet-stream",
)
FIELD_NAMES: Final = ("file", "files")

_EXPECTED_PARTS: Final = "expected one or more file parts named 'file' or 'files'"
_MAX_TEXT_FIELDS: Final = 100


async def read_uploads(request: Request, settings: Settings, held: Hold) -> list[Upload]:
    """Read the pictures of a request.

    Args:
        request: Its body is read as it streams in, to memory only; bytes and time are bounded before it comes here.
        settings: Bounds on bytes and pictures.
        held: Where the bytes are counted, as they come.

    Returns:
        At least one upload, in the order of the form. Nothing is decoded yet.

    Raises:
        UnsupportedMediaTypeError: Neither a form nor an accepted image type.
        MalformedFormError: The form can't be parsed, or has no file part of the right name.
        BodyTooLargeError: More than `settings.max_request_bytes`; the rest is not read.
        TooManyImagesError: More than `settings.max_images_per_request`.
        QueueFullError: All requests together hold too many bytes.
        DeadlineExceededError: The client sends too slowly.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {FORM_TYPE, *RAW_TYPES}:
        came = f"'{media_type}'" if media_type else "missing"
        raise UnsupportedMediaTypeError(
            f"The content type is {came}; expected {FORM_TYPE}, or one picture as {', '.join(RAW_TYPES)}."
        )
    if media_type != FORM_TYPE:
        return [Upload(None, bytes(await read_body(request, settings, held)))]
    async with aclosing(counted(request, settings, held)) as stream:
        return await _read_form(request.headers, stream, settings)


async def _read_form(headers: Headers, stream: AsyncGenerator[bytes, None], settings: Settings) -> list[Upload]:
    try:
        form = await _FormParser(headers, stream, settings).parse()
    except MultiPartException as error:
        raise MalformedFormError(f"The form can't be parsed: {error.message}") from error
    try:
        parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not parts:
            raise MalformedFormError(_no_files([name for name, _ in form.multi_items()]))
        return [Upload(part.filename or None, await _take(part)) for part in parts]
    finally:
        await form.close()


async def _take(part: UploadFile) -> bytes:
    """Read a part and let its buffer go, so that no more than one part is there twice."""
    data = await part.read()
    await part.close()
    return data


def _no_files(text_fields: list[str]) -> str:
    if not text_fields:
        return f"The form is empty; {_EXPECTED_PARTS}."
    names = ", ".join(repr(name) for name in text_fields[:5])
    hint = " (with curl: -F 'files=@cell.bmp')" if set(text_fields) & set(FIELD_NAMES) else ""
    return f"The form has no file, only text in {names}; {_EXPECTED_PARTS}{hint}."


class _FormParser(MultiPartParser):
    """Starlette's parser, which refuses a part as soon as its headers are read, and spares the disk."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], settings: Settings) -> None:
        super().__init__(headers, stream, max_fields=_MAX_TEXT_FIELDS, max_files=float("inf"))
        # The stream is bounded already, so no part is ever large enough to be rolled to disk.
        self.spool_max_size = settings.max_request_bytes + 1
        self._max_images = settings.max_images_per_request

    async def parse(self) -> FormData:
        try:
            form = await super().parse()
            begun = len(self._files_to_close_on_error)
            if begun > sum(isinstance(part, UploadFile) for _, part in form.multi_items()):
                raise MalformedFormError("The form ends inside a file: its last boundary is missing.")
        except BaseException:  # Starlette itself closes them only after errors of its own
            for file in self._files_to_close_on_error:
                file.close()
            raise
        return form

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is not None and part.field_name not in FIELD_NAMES:
            raise MalformedFormError(f"The form has a file in {part.field_name!r}; {_EXPECTED_PARTS}.")
        if self._current_files > self._max_images:
            raise TooManyImagesError(f"The request has more than {self._max_images} pictures.")
