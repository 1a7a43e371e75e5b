"""Read the pictures out of a request: a form or a raw body, bounded while it streams."""

from typing import Final

from starlette.requests import Request

from app.core.errors import UnsupportedMediaTypeError
from app.inference.budget import Hold
from app.inference.classifier import Upload
from app.routes.bodies import read_body, read_chunks
from app.routes.forms import Form
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
_MEDIA_TYPES: Final = {FORM_TYPE, *RAW_TYPES}


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
    if media_type not in _MEDIA_TYPES:
        came = f"'{media_type}'" if media_type else "missing"
        raise UnsupportedMediaTypeError(
            f"The content type is {came}; expected {FORM_TYPE}, or one picture as {', '.join(RAW_TYPES)}."
        )
    if media_type != FORM_TYPE:
        return [Upload(None, bytes(await read_body(request, settings, held)))]
    form = Form(request.headers["content-type"], settings.max_images_per_request)
    await read_chunks(request, settings, held, form.write)
    return form.uploads()
