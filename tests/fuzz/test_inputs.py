"""Hypothesis on the decoder and the multipart parser; and inputs made to deceive."""

import io
import struct
import time
import zipfile
import zlib
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.core.errors import ImageError, ImageTooLargeError, InputError, MalformedFormError
from tests.fuzz.targets import FORMATS, decode_target, form, multipart_target, small_picture
from tests.service.harness import make_settings, running
from training.data.drawn import cell_bytes

PICTURES = [small_picture(kind) for kind in FORMATS] + [small_picture("PNG", "P"), small_picture("TIFF", "CMYK")]
MODERATE = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
STARTS = [b"", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"RIFF"]
FILE = b'Content-Disposition: form-data; name="files"; filename="a.bmp"'


@st.composite
def damaged_pictures(draw: st.DrawFn) -> bytes:
    """A picture with some bytes changed, cut out, doubled, or its end missing."""
    data = bytearray(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["set", "cut", "double", "end"]))
        if kind == "set":
            data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "double":
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


@MODERATE
@given(damaged_pictures())
def test_damaged_pictures_are_read_or_refused(data: bytes) -> None:
    decode_target(data)


@MODERATE
@given(
    st.binary(max_size=2000), st.sampled_from([b"", b"BM", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"RIFF"])
)
def test_any_bytes_are_read_or_refused(data: bytes, start: bytes) -> None:
    assert isinstance(decode_target(start + data), Image.Image | ImageError)


headers = st.one_of(
    st.just(FILE),
    st.just(FILE + b"\r\nContent-Type: image/bmp"),
    st.just(b'Content-Disposition: form-data; name="note"'),
    st.just(b"Content-Disposition: form-data"),
    st.just(b'Content-Disposition: form-data; name="files"; filename="' + b"../" * 40 + b'etc/passwd"'),
    st.just(b"Content-Disposition: form-data; name=\"files\"; filename*=UTF-8''%e2%82"),
    st.binary(max_size=60),
)
parts = st.lists(st.tuples(headers, st.one_of(st.binary(max_size=100), st.just(PICTURES[0]))), max_size=12)
ends = st.sampled_from(
    [b"--boundary--\r\n", b"--boundary--", b"--boundary", b"", b"--boundary--\r\njunk", b"--other--"]
)


@MODERATE
@given(parts, ends, st.lists(st.integers(0, 5000), max_size=6))
def test_any_form_is_read_or_refused(content: list[tuple[bytes, bytes]], end: bytes, cuts: list[int]) -> None:
    multipart_target(form(content, end), cuts=cuts)


@MODERATE
@given(st.binary(max_size=500), st.binary(max_size=80), st.lists(st.integers(0, 500), max_size=4))
def test_any_bytes_as_a_form_are_refused_as_malformed(body: bytes, boundary: bytes, cuts: list[int]) -> None:
    assert isinstance(multipart_target(body, b"multipart/form-data; boundary=" + boundary, cuts), InputError)


def test_a_form_that_is_cut_short_is_refused_whole() -> None:
    """A picture that came in part must not be missing in silence."""
    body = form([(FILE, PICTURES[0]), (FILE, PICTURES[1])])
    for end in range(body.index(PICTURES[1]), len(body) - len(b"\r\n--boundary--\r\n")):
        assert isinstance(multipart_target(body[:end]), MalformedFormError)


def test_the_same_form_in_any_pieces_is_the_same() -> None:
    body = form([(FILE, PICTURES[0]), (FILE, PICTURES[1])])
    whole = multipart_target(body)
    assert isinstance(whole, list)
    assert [upload.data for upload in whole] == PICTURES[:2]
    for cut in range(0, len(body), 7):
        assert multipart_target(body, cuts=[cut, cut + 1, cut + 3]) == whole


@pytest.mark.parametrize(
    "body",
    [
        form([(FILE + b"\r\nX-Long: " + b"a" * 500_000, b"x")]),
        form([(FILE + b"\r\nX: a" * 50_000, b"x")]),
        form([(b'Content-Disposition: form-data; name="note"', b"x")] * 5000),
        form([(b'Content-Disposition: form-data; name="note"', b"x" * 900_000)] * 2),
    ],
    ids=["one long header", "many headers", "many fields", "long fields"],
)
def test_forms_that_flood_are_refused(body: bytes) -> None:
    assert isinstance(multipart_target(body[:1_000_000]), MalformedFormError)


def png_header(width: int, height: int, rest: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + rest + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    text = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    return png_header(
        8, 8, struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    )


def tiff_bomb() -> bytes:
    tags = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 60_000), (279, 4)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 12) + b"\0\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


BMP_BOMB = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("bomb", "kind"),
    [
        (png_header(100_000, 100_000), ImageTooLargeError),
        (png_header(2**31 - 1, 2**31 - 1), ImageError),
        (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
            ImageError,
        ),
        (tiff_bomb(), ImageError),
        (text_bomb(), ImageError),
    ],
    ids=["png", "png at its limit", "bmp", "tiff", "png text"],
)
def test_bombs_are_refused_at_once(bomb: bytes, kind: type[ImageError]) -> None:
    began_s = time.monotonic()
    assert isinstance(decode_target(bomb), kind)
    assert time.monotonic() - began_s < 10


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("script.py", "print('owned')")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"%PDF-1.7\n" + bytes(100),
        b"\x7fELF" + bytes(100),
        b"\x80\x04\x95" + bytes(100),  # a pickle
        zipped(),
        b"P6 10 10 255\n" + bytes(300),
    ],
    ids=["gif", "postscript", "svg", "pdf", "elf", "pickle", "zip", "ppm"],
)
def test_other_formats_are_refused(data: bytes) -> None:
    assert isinstance(decode_target(data), ImageError)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_polyglot_is_only_its_picture(kind: str) -> None:
    picture = small_picture(kind)
    image = decode_target(picture + zipped() + b"<script>alert(1)</script>")
    plain = decode_target(picture)
    assert isinstance(image, Image.Image)
    assert isinstance(plain, Image.Image)
    assert image.tobytes() == plain.tobytes()


NAMES = ["../../etc/passwd", "a\\b", "<script>", "x" * 5000, "\N{SNOWMAN}.bmp", "a\r\nX: b.bmp"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\\b", "<script>", "x" * 5000, "\N{SNOWMAN}.bmp", "a\r\nX: b.bmp"]
)
async def test_a_filename_is_only_repeated(models_dir: Path, name: str) -> None:
    async with running(make_settings(models_dir)) as (_, client):
        response: httpx.Response = await client.post("/predict", files={"file": (name, cell_bytes("ALL", 0))})
    assert response.status_code in {200, 400}
    assert response.headers["content-type"].startswith("application/")
