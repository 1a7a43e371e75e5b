"""The parts of `leukoscope predict`: rows as text, subjects, intervals, batches, and an impatient service."""

import io
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.postprocess import Prediction
from app.folder.errors import StoppedError, UsageError
from app.folder.formats import Csv, Format, JsonLines
from app.folder.remote import Service
from app.folder.rows import Row
from app.folder.runner import chunks
from app.folder.sinks import FileSink
from app.folder.sources import Entry
from app.folder.subjects import ByPattern, by_folder, wilson_interval
from app.security.keys import KEY_HEADER

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1)
FORMATS: list[Format] = [Csv(), JsonLines()]


def answered(file: str, subject: str, p_all: float) -> Row:
    prediction = Prediction("ALL", p_all, {"ALL": p_all, "HEM": 1 - p_all}, ("low-confidence",))
    return Row.answered(file, subject, prediction, "tiny", "1.0.0")


@pytest.mark.parametrize("form", FORMATS, ids=["csv", "jsonl"])
@given(file=TEXT, subject=st.just("") | TEXT, error=TEXT, p_all=st.floats(0, 1), cut=st.integers(1, 400))
def test_rows_come_back_whole_whatever_their_text(
    form: Format, file: str, subject: str, error: str, p_all: float, cut: int
) -> None:
    rows = [answered(file, subject, p_all), Row(file=file + "2", subject=subject, error=error)]
    data = form.header() + form.encode(rows)
    assert list(form.decode(io.StringIO(data.decode(), newline=""))) == rows
    # Cut anywhere, what is whole is a beginning of the rows, and no row in half.
    part = data[: max(len(form.header()), len(data) - cut)]
    kept = list(form.decode(io.StringIO(part[: form.whole(part)].decode(), newline="")))
    assert kept == rows[: len(kept)]


def test_no_cell_of_a_csv_is_a_formula() -> None:
    text = Csv().encode([Row(file="=cmd()", subject="+1", error="@sum")]).decode()
    assert text.startswith("'=cmd(),'+1,")
    assert ",'@sum," in text


@pytest.mark.parametrize("length", range(0, 60, 7))
def test_a_file_cut_at_its_very_beginning_begins_anew(tmp_path: Path, length: int) -> None:
    for form in FORMATS:
        path = tmp_path / "rows"
        path.write_bytes((form.header() + form.encode([answered("a", "1", 0.5)]))[:length])
        sink = FileSink(path, form, fresh=False, retry_failed=False)
        sink.append([answered("b", "2", 0.25)])
        assert [row.file for row in sink.rows()] == ["b"]
        sink.close(finished=True)
        path.unlink()


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    sink = FileSink(tmp_path / "r.csv", Csv(), fresh=False, retry_failed=False)
    with pytest.raises(UsageError, match="another run"):
        FileSink(tmp_path / "r.csv", Csv(), fresh=False, retry_failed=False)
    sink.close(finished=True)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("data/UID_11_10_1_all.bmp", "11"),
        ("data/UID_H11_10_1_hem.bmp", "H11"),
        ("uid_h11_10_1_HEM.png", "H11"),
        ("cell.bmp", ""),
    ],
)
def test_subjects_of_cnmc_names(name: str, subject: str) -> None:
    assert ByPattern()(name) == subject


def test_subjects_by_own_pattern_and_by_folder() -> None:
    assert ByPattern.parse("patient-(?P<subject>[a-z0-9]+)")("x/Patient-7b_3.png") == "7B"
    assert by_folder("slides.zip/patient 7/3.png") == "patient 7"
    assert by_folder("3.png") == ""


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_published_values(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(hits, trials) == pytest.approx((low, high), abs=5e-5)


def test_batches_are_bounded_by_count_and_bytes() -> None:
    sizes = [4, 4, 4, 20, 1, 1, 1, 1]
    entries = [Entry(str(number), Path(), size=size) for number, size in enumerate(sizes)]
    assert [[entry.size for entry in chunk] for chunk in chunks(entries, 3, 10)] == [[4, 4], [4], [20], [1, 1, 1], [1]]


ANSWER = {
    "request_id": "1",
    "model": {"name": "tiny", "version": "1.0.0"},
    "summary": {"images": 1, "ALL": 1, "HEM": 0, "review": 0, "errors": 0},
}
READY = {
    "status": "ready",
    "reason": None,
    "model": ANSWER["model"],
    "provider": {"requested": "cpu", "active": "CPUExecutionProvider"},
}
PREDICTED = {
    "filename": "0",
    "label": "ALL",
    "confidence": 0.75,
    "probabilities": {"ALL": 0.75, "HEM": 0.25},
    "review": False,
    "reasons": [],
}


def problem(status: int, detail: str, **headers: str) -> httpx.Response:
    body = {"type": "/problems/x", "title": "x", "status": status, "detail": detail, "instance": "/", "request_id": "1"}
    return httpx.Response(status, json=body, headers=headers)


def service(handler: Callable[[httpx.Request], httpx.Response], patience_s: float = 30) -> Service:
    return Service("http://service", api_key="secret", patience_s=patience_s, transport=httpx.MockTransport(handler))


@pytest.mark.anyio
async def test_a_busy_service_is_asked_again_after_the_time_it_names() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.headers[KEY_HEADER] == "secret"
        seen.append(request.url.path)
        if request.url.path == "/readyz":
            return httpx.Response(200, json=READY)
        if seen.count("/predict") == 1:
            return problem(429, "full", **{"retry-after": "1"})
        if seen.count("/predict") == 2:
            raise httpx.ConnectError("gone")
        return httpx.Response(200, json=ANSWER | {"predictions": [PREDICTED]})

    async with service(handler) as client:
        answer = await client.answer([b"cell"])
    assert seen == ["/readyz", "/predict", "/predict", "/predict"]
    assert answer.results == [Prediction("ALL", 0.75, {"ALL": 0.75, "HEM": 0.25}, ())]


@pytest.mark.anyio
async def test_what_is_too_large_together_is_sent_apart() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/readyz":
            return httpx.Response(200, json=READY)
        pictures = request.content.count(b"filename=")
        if pictures > 2 or b"huge" in request.content:
            return problem(413, "too many bytes")
        return httpx.Response(200, json=ANSWER | {"predictions": [PREDICTED] * pictures})

    async with service(handler) as client:
        answer = await client.answer([b"cell", b"cell", b"huge", b"cell", b"cell"])
    assert [result if isinstance(result, str) else result.label for result in answer.results] == [
        "ALL",
        "ALL",
        "too many bytes",
        "ALL",
        "ALL",
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_a_refusal_that_waiting_does_not_mend_stops_at_once(status: int) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=READY) if request.url.path == "/readyz" else problem(status, "no")

    async with service(handler) as client:
        with pytest.raises(StoppedError, match="no"):
            await client.answer([b"cell"])


@pytest.mark.anyio
async def test_something_else_that_answers_is_named() -> None:
    with pytest.raises(StoppedError, match="does not answer as a Leukoscope service"):
        async with service(lambda _: httpx.Response(200, text="<html>")):
            pass
