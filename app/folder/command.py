"""The command `leukoscope predict`: its options, its order of work, and its exit codes."""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from app.folder.answers import Answerer, InProcess
from app.folder.client_key import read_client_key
from app.folder.cluster import OnRay, check_ray
from app.folder.display import progress, show_summary
from app.folder.errors import StoppedError, UsageError
from app.folder.heatmaps import HeatMaps
from app.folder.remote import Service
from app.folder.rows import Row
from app.folder.runner import Runner, Work, check_same_model, take_up
from app.folder.sinks import Sink, open_sink
from app.folder.sources import Listing, Reader, find
from app.folder.store_sink import StoreSink
from app.folder.stores import is_url
from app.folder.subjects import ByPattern, SubjectRule, Summary, by_folder
from app.settings import CLIENT_KEY_VARIABLE, Settings

ALL_ANSWERED: Final = 0
SOME_FAILED: Final = 1
USAGE: Final = 2
STOPPED: Final = 3
INTERRUPTED: Final = 130

_HELP: Final = """Answer pictures in folders, files and zip archives, and write a table.

PATH is a folder (walked to the bottom), a picture, a zip archive, or a quoted pattern such as
'slides/**/*.bmp'; or a URL such as s3://bucket/prefix/. The model answers in this process, or
a service does with --server, or many workers do with --ray.

The same command goes on where an earlier run stopped: rows that are in --out are not done again.
A picture that can't be used becomes a row with its error. Parquet can't be added to: until
the run is finished, its rows are in FILE.parquet.part.jsonl, and behind a URL in URL.parts/.

\b
Exit codes:
  0    every picture is answered
  1    every picture has its row, some with an error
  2    the command can't be run as it was given
  3    model, service or disk failed on the way; the same command goes on
  130  stopped by Ctrl-C; the same command goes on
"""

_Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="What to answer.")]
_Out = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="FILE.csv, .jsonl or .parquet, or a URL.parquet; without it, CSV on standard output."
    ),
]
_Server = Annotated[str | None, typer.Option(help="Ask this service, such as http://127.0.0.1:8000.")]
_KeyFile = Annotated[Path | None, typer.Option(help=f"File with the service's key; or set {CLIENT_KEY_VARIABLE}.")]
_Ray = Annotated[bool, typer.Option("--ray", help="Answer on Ray: the cluster of RAY_ADDRESS, or this machine.")]
_Workers = Annotated[int | None, typer.Option(min=1, help="Of --ray; by default as many as the cluster has room for.")]
_Explain = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write each new picture's heat-map into this folder.")
]
_Pattern = Annotated[
    str | None, typer.Option(help="Regular expression with (?P<subject>...) for file names; C-NMC's names are known.")
]
_Folder = Annotated[bool, typer.Option("--subject-folder", help="The folder is the subject.")]
_Retry = Annotated[bool, typer.Option("--retry-failed", help="Try rows with an error again.")]
_Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew; rows that are there are lost.")]
_Patience = Annotated[float, typer.Option(min=0, help="Seconds to wait for a service that is busy or gone.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was told."""

    paths: list[str]
    out: str | None
    server: str | None
    api_key_file: Path | None
    ray: bool
    workers: int | None
    explain: Path | None
    subject_of: SubjectRule
    retry_failed: bool
    fresh: bool
    patience_s: float


def register(cli: typer.Typer, load_settings: Callable[[], Settings]) -> None:
    """Add the command to a command line.

    Args:
        cli: The command line.
        load_settings: Reads the settings, or ends the program with a message.
    """

    @cli.command(name="predict", help=_HELP)
    def predict(  # noqa: PLR0913, PLR0917 - each is an option of the command
        paths: _Paths,
        out: _Out = None,
        server: _Server = None,
        api_key_file: _KeyFile = None,
        ray: _Ray = False,
        workers: _Workers = None,
        explain: _Explain = None,
        subject_pattern: _Pattern = None,
        subject_folder: _Folder = False,
        retry_failed: _Retry = False,
        fresh: _Fresh = False,
        patience: _Patience = 300,
    ) -> None:
        """Answer pictures and write a table."""
        console = Console(stderr=True)
        try:
            options = Options(
                paths=paths,
                out=out,
                server=server,
                api_key_file=api_key_file,
                ray=ray,
                workers=workers,
                explain=explain,
                subject_of=_subject_rule(subject_pattern, subject_folder),
                retry_failed=retry_failed,
                fresh=fresh,
                patience_s=patience,
            )
            code = _run(options, load_settings, console)
        except UsageError as error:
            code = _say(console, error, USAGE)
        except StoppedError as error:
            code = _say(console, error, STOPPED)
        except KeyboardInterrupt:
            code = _say(console, "stopped; the same command goes on from here", INTERRUPTED)
        raise typer.Exit(code)


def _run(options: Options, load_settings: Callable[[], Settings], console: Console) -> int:
    settings = load_settings()
    _check_ray_options(options)
    answerer = None if options.ray else _answerer(options, settings)
    listing = find(options.paths)
    if not listing.entries:
        raise UsageError(f"no pictures found; {listing.skipped} other files were passed over")
    sink = _sink(options)
    finished = False
    try:
        with Reader(settings.max_request_bytes) as reader:
            work: Work
            if answerer is None:
                work = OnRay(settings, sink, options.subject_of, options.workers)
            else:
                heat_maps = None if options.explain is None else HeatMaps(options.explain)
                work = Runner(answerer, reader, sink, options.subject_of, heat_maps)
            summary = asyncio.run(_work(work, listing, sink, console))
        finished = True
    finally:
        sink.close(finished=finished)
    show_summary(console, summary)
    return SOME_FAILED if summary.total.failed else ALL_ANSWERED


async def _work(work: Work, listing: Listing, sink: Sink, console: Console) -> Summary:
    summary = Summary.empty()
    done, models = take_up(sink, summary)
    entries = [entry for entry in listing.entries if entry.key not in done]
    console.print(_plan(listing, len(entries)), highlight=False, markup=False)
    if not entries:
        return summary
    # SIGTERM ends it as Ctrl-C does: what is answered is written.
    if os.name == "posix":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    async with work:
        check_same_model(models, work.model)
        with progress(console, len(entries)) as advance:

            def count(rows: Sequence[Row]) -> None:
                for row in rows:
                    summary.add(row)
                advance(len(rows))

            await work.run(entries, count)
    return summary


def _plan(listing: Listing, left: int) -> str:
    found = len(listing.entries)
    words = [f"{found:,} pictures found"]
    if left < found:
        words.append(f"{found - left:,} have their row already")
    if listing.skipped:
        words.append(f"{listing.skipped:,} other files passed over")
    return "; ".join(words) + "."


def _sink(options: Options) -> Sink:
    if options.out is not None and is_url(options.out):
        return StoreSink(options.out, fresh=options.fresh, retry_failed=options.retry_failed)
    out = None if options.out is None else Path(options.out)
    return open_sink(out, fresh=options.fresh, retry_failed=options.retry_failed)


def _check_ray_options(options: Options) -> None:
    if not options.ray:
        if options.workers is not None:
            raise UsageError("--workers is for --ray")
        return
    for name, value in (("--server", options.server), ("--api-key-file", options.api_key_file)):
        if value is not None:
            raise UsageError(f"{name} and --ray exclude each other: Ray's workers answer by themselves")
    if options.out is None:
        raise UsageError("--ray needs --out: Ray writes to standard output too")
    if options.explain is not None:
        raise UsageError("--explain can't be had with --ray; run it without, for the pictures that matter")
    check_ray()


def _answerer(options: Options, settings: Settings) -> Answerer:
    key = read_client_key(options.api_key_file)
    if options.server is None:
        if options.api_key_file is not None:
            raise UsageError("--api-key-file is for --server")
        return InProcess(settings, heat_maps=options.explain is not None)
    return Service(options.server, api_key=key, patience_s=options.patience_s, heat_maps=options.explain is not None)


def _subject_rule(pattern: str | None, folder: bool) -> SubjectRule:
    if pattern is not None and folder:
        raise UsageError("--subject-pattern and --subject-folder exclude each other")
    if folder:
        return by_folder
    return ByPattern() if pattern is None else ByPattern.parse(pattern)


def _say(console: Console, message: object, code: int) -> int:
    console.print(f"leukoscope: {message}", highlight=False, markup=False, soft_wrap=True)
    return code
