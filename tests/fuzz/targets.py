"""What is fuzzed, by Hypothesis in the tests and by atheris in `make fuzz`: bytes in, nothing but known errors out."""

import asyncio
import io
import itertools
from collections.abc import Sequence

from PIL import Image
from starlette.requests import Request
from starlette.types import Message

from app.core.errors import ImageError, InputError, LeukoscopeError
from app.core.imaging import decode
from app.inference.budget import ByteBudget
from app.inference.classifier import Upload
from app.metrics import Metrics
from app.routes.uploads import read_uploads
from app.settings import Settings

MAX_PIXELS = 256 * 256
FORMATS = ("BMP", "PNG", "JPEG", "TIFF", "WEBP")
BOUNDARY = b"boundary"
_SETTINGS = Settings(max_images_per_request=8, max_request_bytes=1_000_000)


def decode_target(data: bytes) -> Image.Image | ImageError:
    """Decode; any other error than an `ImageError` passes through."""
    try:
        image = decode(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        return error
    assert image.mode == "RGB"
    assert 0 < image.width * image.height <= MAX_PIXELS
    assert len(image.tobytes()) == image.width * image.height * 3
    return image


def multipart_target(
    body: bytes, content_type: bytes = b"multipart/form-data; boundary=boundary", cuts: Sequence[int] = ()
) -> list[Upload] | LeukoscopeError:
    """Read the uploads of a body that arrives in pieces; any other error than the service's own passes through."""
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    pieces = [body[start:end] for start, end in itertools.pairwise(edges)] or [b""]
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False

    async def receive() -> Message:
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"content-type", content_type)]}

    async def read() -> list[Upload] | LeukoscopeError:
        budget = ByteBudget(10_000_000, Metrics(), lambda: 1.0)
        try:
            with budget.hold() as held:
                return await read_uploads(Request(scope, receive), _SETTINGS, held)
        except InputError as error:
            return error

    result = asyncio.run(read())
    if isinstance(result, list):
        assert 1 <= len(result) <= _SETTINGS.max_images_per_request
        assert sum(len(upload.data) for upload in result) <= len(body)
    return result


def small_picture(kind: str, mode: str = "RGB") -> bytes:
    """A picture of 12 by 10 pixels in a format."""
    image = Image.radial_gradient("L").resize((12, 10)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def form(parts: Sequence[tuple[bytes, bytes]], end: bytes = b"--boundary--\r\n") -> bytes:
    """A body with parts of (headers, content)."""
    body = b"".join(b"--boundary\r\n" + headers + b"\r\n\r\n" + content + b"\r\n" for headers, content in parts)
    return body + end
