"""`leukoscope predict` from and to object stores: a real S3 server, and a store in memory that breaks as told."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from app.cli import cli
from app.core.postprocess import Prediction
from app.folder.errors import StoppedError, UsageError
from app.folder.rows import Row
from app.folder.sources import Reader, UnreadableError, find
from app.folder.store_sink import StoreSink
from app.folder.stores import StoredFile
from tests.stores import BUCKET, s3_server
from training.data.drawn import cell_bytes

URL = "memory://out/r.parquet"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with s3_server():
        yield fsspec.filesystem("s3")


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def predict(models_dir: Path, *words: str) -> Result:
    settings = {"LEUKOSCOPE_MODELS_DIR": str(models_dir), "LEUKOSCOPE_INFERENCE_THREADS": "1"}
    return CliRunner().invoke(cli, ["predict", *words], env=settings)


def row(number: int, *, failed: bool = False) -> Row:
    file, subject = f"s3://cells/{number}.bmp", "7\u2028"
    if failed:
        return Row(file=file, subject=subject, error="no picture", model="tiny", version="1.0.0")
    prediction = Prediction("ALL", 0.75, {"ALL": 0.75, "HEM": 0.25}, ())
    return Row.answered(file, subject, prediction, "tiny", "1.0.0")


def sink(*, fresh: bool = False, retry_failed: bool = False, part_rows: int = 2, url: str = URL) -> StoreSink:
    return StoreSink(url, fresh=fresh, retry_failed=retry_failed, part_rows=part_rows)


def table(system: Any) -> list[dict[str, Any]]:
    with system.open("/out/r.parquet") as file:
        return pl.read_parquet(file.read()).to_dicts()


def files(out: StoreSink) -> set[str]:
    found = {row.file for row in out.rows()}
    abandon(out)
    return found


def finish(*rows: Row, **options: Any) -> None:
    out = sink(**options)
    out.append(rows)
    out.close(finished=True)


def kill(*batches: list[Row]) -> None:
    """Write what a run writes that is killed after these batches."""
    out = sink()
    for batch in batches:
        out.append(batch)
    abandon(out)


def abandon(out: StoreSink) -> None:
    """Let go of the local files, as the end of a process would, and write nothing more."""
    out._journal.close(finished=False)
    out._folder.cleanup()


def test_a_bucket_gives_the_folder_commands_rows(models_dir: Path, s3: Any, tmp_path: Path) -> None:
    local = tmp_path / "cells"
    local.mkdir()
    for number in range(3):
        (local / f"UID_{number}_1_1_all.bmp").write_bytes(cell_bytes("ALL", number))
    (local / "damaged.bmp").write_bytes(cell_bytes("ALL", 1)[:1000])
    (local / "notes.txt").write_bytes(b"no picture")
    s3.put(str(local), f"{BUCKET}/slides/", recursive=True)
    here = predict(models_dir, str(local), "--out", str(tmp_path / "r.parquet"))
    out = f"s3://{BUCKET}/out/r.parquet"
    there = predict(models_dir, f"s3://{BUCKET}/slides/", "--out", out)
    assert (here.exit_code, there.exit_code) == (1, 1), there.stderr
    assert "4 pictures found; 1 other files passed over." in there.stderr
    expected = pl.read_parquet(tmp_path / "r.parquet").with_columns(
        pl.col("file").str.replace(f"{local}/", f"s3://{BUCKET}/slides/cells/", literal=True)
    )
    assert pl.read_parquet(s3.cat_file(out)).to_dicts() == expected.to_dicts()
    assert s3.find(f"{BUCKET}/out") == [f"{BUCKET}/out/r.parquet"]
    again = predict(models_dir, f"s3://{BUCKET}/slides/", "--out", out)
    assert "4 pictures found; 4 have their row already" in again.stderr


def test_a_pattern_and_a_named_object(s3: Any) -> None:
    s3.pipe({f"{BUCKET}/p/a/1.bmp": b"1", f"{BUCKET}/p/b/2.bmp": b"22", f"{BUCKET}/p/b/raw": b"3"})
    assert [entry.key for entry in find([f"s3://{BUCKET}/p/**/*.bmp"]).entries] == [
        f"s3://{BUCKET}/p/a/1.bmp",
        f"s3://{BUCKET}/p/b/2.bmp",
    ]
    (named,) = find([f"s3://{BUCKET}/p/b/raw"]).entries
    assert (named.size, Reader(10).read(named)) == (1, b"3")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense://bucket/", "Protocol not known: nonsense; expected a path, or a URL such as s3://"),
        (f"s3://{BUCKET}/nothing/", "no such bucket, prefix or file"),
        ("s3://no-such-bucket/", "no such bucket, prefix or file"),
        (f"s3://{BUCKET}/nothing/*.bmp", "the pattern matches nothing"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_a_url_without_pictures_is_a_wrong_command(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find([url])


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"the store's library is not installed: .*gcsfs"):
        find(["gs://bucket/prefix/"])
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"fsspec, which is not installed: pip install 'leukoscope\[ray\]'"):
        find(["s3://bucket/prefix/"])


def test_one_bad_object_is_a_row_and_a_failing_store_stops(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe({"/in/a.bmp": b"1234", "/in/b::c.bmp": b"1"})
    first, odd = find(["memory://in/"]).entries
    with pytest.raises(UnreadableError, match="4 bytes; at most 3"):
        Reader(3).read(first)
    with pytest.raises(UnreadableError, match="has '::'"):
        Reader(3).read(odd)
    memory.rm("/in/a.bmp")
    with pytest.raises(UnreadableError, match="can't be read"):
        Reader(10).read(first)
    monkeypatch.setattr(type(memory), "cat_file", lambda *_: (_ for _ in ()).throw(ConnectionError("unplugged")))
    with pytest.raises(StoppedError, match="the store fails: unplugged"):
        StoredFile("memory://in/a.bmp").read_bytes()


def test_a_run_that_was_killed_loses_only_what_waited(memory: Any) -> None:
    kill([row(1)], [row(2)], [row(3)])
    resumed = sink()
    assert [row.file for row in resumed.rows()] == ["s3://cells/1.bmp", "s3://cells/2.bmp"]
    resumed.append([row(3), row(4, failed=True)])
    resumed.close(finished=True)
    assert table(memory) == [row(1).record(), row(2).record(), row(3).record(), row(4, failed=True).record()]
    assert memory.find("/out") == ["/out/r.parquet"]


def test_a_run_that_is_stopped_in_good_order_loses_nothing(memory: Any) -> None:
    out = sink(part_rows=100)
    out.append([row(1)])
    out.close(finished=False)
    assert not memory.exists("/out/r.parquet")
    assert files(sink()) == {"s3://cells/1.bmp"}


def test_parts_that_a_kill_left_beside_the_table_repeat_no_row(memory: Any) -> None:
    kill([row(1), row(2)])
    left = {path: memory.cat_file(path) for path in memory.find("/out/r.parquet.parts")}
    finish(row(3))
    memory.pipe(left)
    finish(row(4))
    assert [answer["file"] for answer in table(memory)] == [f"s3://cells/{number}.bmp" for number in (1, 2, 3, 4)]


def test_failed_rows_are_tried_again_and_fresh_begins_anew(memory: Any) -> None:
    finish(row(1), row(2, failed=True))
    kill([row(3, failed=True), row(4)])
    again = sink(retry_failed=True)
    assert {row.file for row in again.rows()} == {"s3://cells/1.bmp", "s3://cells/4.bmp"}
    abandon(again)
    assert files(sink()) == {"s3://cells/1.bmp", "s3://cells/4.bmp"}
    finish(row(9), fresh=True)
    assert [answer["file"] for answer in table(memory)] == ["s3://cells/9.bmp"]


def test_a_run_that_another_has_taken_up_writes_no_more(s3: Any) -> None:
    url = f"s3://{BUCKET}/two/r.parquet"
    first = sink(url=url)
    first.append([row(1), row(2)])
    second = sink(url=url)
    with pytest.raises(StoppedError, match="another run is writing"):
        first.append([row(3), row(4)])
    abandon(first)
    second.append([row(3), row(4)])
    second.close(finished=True)
    rows = pl.read_parquet(s3.cat_file(url))["file"].to_list()
    assert rows == [f"s3://cells/{number}.bmp" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"s3://{BUCKET}/r.csv", r"expected a URL that ends in \.parquet"),
        ("s3://no-such-bucket/r.parquet", r"s3://no-such-bucket/r\.parquet: can't be read: .*bucket"),
        ("nonsense://r.parquet", "Protocol not known"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_an_output_that_cannot_be_written_is_told_before_the_work(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sink(url=url)


def test_what_is_no_output_of_this_command_is_left_alone(memory: Any) -> None:
    memory.pipe("/out/r.parquet", b"something else")
    with pytest.raises(UsageError, match=r"^memory://out/r.parquet: can't be read as Parquet"):
        sink()
    memory.rm("/out/r.parquet")
    memory.pipe("/out/r.parquet.parts/000001.jsonl", json.dumps({"file": "x"}).encode())
    with pytest.raises(UsageError, match="is no part of this command's output"):
        sink()
