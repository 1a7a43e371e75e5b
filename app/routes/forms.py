"""The pictures in a form, as python-multipart finds them in its chunks: in memory, refused as early as can be."""

import codecs
from typing import Final

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.core.errors import MalformedFormError, TooManyImagesError
from app.inference.classifier import Upload

FIELD_NAMES: Final = ("file", "files")

_EXPECTED_PARTS: Final = "expected one or more file parts named 'file' or 'files'"
_MAX_TEXT_FIELDS: Final = 100
_MAX_TEXT_BYTES: Final = 1024 * 1024


class Form:
    """One form on its way; bytes and time are bounded before it comes here.

    Starlette's own parser puts each part into a temporary file behind an asynchronous wrapper, for parts that are too
    large for memory. Here none is, and for a small picture those cost more than the parsing.
    """

    def __init__(self, content_type: str, max_images: int) -> None:
        """Begin.

        Args:
            content_type: The request's header.
            max_images: Most pictures.

        Raises:
            MalformedFormError: The header names no boundary, or not one that can be used.
        """
        _, options = parse_options_header(content_type)
        if b"boundary" not in options:
            raise _unparsable("Missing boundary in multipart.")
        self._charset = _charset(options.get(b"charset", b"utf-8").decode("latin-1"))
        self._max_images = max_images
        self._uploads: list[Upload] = []
        self._text_fields: list[str] = []
        self._images = 0
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._filename: str | None = None
        self._data: bytes | bytearray = b""
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin_part,
                    "on_part_data": self._take_data,
                    "on_part_end": self._end_part,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                },
            )
        except FormParserError as error:
            raise _unparsable("Invalid multipart data.") from error

    def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            MalformedFormError: They are no form, or not one of pictures.
            TooManyImagesError: There are more than `max_images`.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _unparsable("Invalid multipart data.") from error

    def uploads(self) -> list[Upload]:
        """Return the pictures in their order, once all is written; at least one.

        Raises:
            MalformedFormError: The form is cut short, or has no picture.
        """
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise _unparsable("Invalid multipart data.") from error
        if self._images > len(self._uploads):
            raise MalformedFormError("The form ends inside a file: its last boundary is missing.")
        if not self._uploads:
            raise MalformedFormError(_no_files(self._text_fields))
        return self._uploads

    def _begin_part(self) -> None:
        self._headers = {}
        self._data = b""

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        if b"name" not in options:
            raise _unparsable('The Content-Disposition header field "name" must be provided.')
        name = self._decoded(options[b"name"])
        self._filename = self._decoded(options[b"filename"]) if b"filename" in options else None
        if self._filename is None:
            self._begin_text(name)
        else:
            self._begin_file(name)

    def _begin_text(self, name: str) -> None:
        if len(self._text_fields) == _MAX_TEXT_FIELDS:
            raise _unparsable(f"Too many fields. Maximum number of fields is {_MAX_TEXT_FIELDS}.")
        self._text_fields.append(name)

    def _begin_file(self, name: str) -> None:
        if name not in FIELD_NAMES:
            raise MalformedFormError(f"The form has a file in {name!r}; {_EXPECTED_PARTS}.")
        self._images += 1
        if self._images > self._max_images:
            raise TooManyImagesError(f"The request has more than {self._max_images} pictures.")

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._filename is None and len(self._data) + end - start > _MAX_TEXT_BYTES:
            raise _unparsable(f"Part exceeded maximum size of {_MAX_TEXT_BYTES // 1024}KB.")
        # A part that comes whole is copied once; the crumbs of others go into one buffer, since each object has a size.
        if not self._data:
            self._data = data[start:end]
        else:
            if isinstance(self._data, bytes):
                self._data = bytearray(self._data)
            self._data += data[start:end]

    def _end_part(self) -> None:
        if self._filename is not None:
            self._uploads.append(Upload(self._filename or None, bytes(self._data)))
        self._data = b""

    def _decoded(self, text: bytes) -> str:
        try:
            return text.decode(self._charset)
        except UnicodeDecodeError:
            return text.decode("latin-1")


def _charset(name: str) -> str:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "latin-1"


def _unparsable(why: str) -> MalformedFormError:
    return MalformedFormError(f"The form can't be parsed: {why}")


def _no_files(text_fields: list[str]) -> str:
    if not text_fields:
        return f"The form is empty; {_EXPECTED_PARTS}."
    names = ", ".join(repr(name) for name in text_fields[:5])
    hint = " (with curl: -F 'files=@cell.bmp')" if set(text_fields) & set(FIELD_NAMES) else ""
    return f"The form has no file, only text in {names}; {_EXPECTED_PARTS}{hint}."
