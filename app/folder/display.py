"""What a person sees: progress while it runs, and the summary by subject at the end."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from app.folder.subjects import Summary, Tally, wilson_interval

_SAY_EVERY_S: Final = 10.0


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with images/s and time left; where there is no terminal, a line every ten seconds.

    Yields:
        To be called with how many more pictures have ended.
    """
    if not console.is_terminal:
        yield _Lines(console, total)
        return
    columns = (TextColumn("Answering"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


class _Lines:
    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._began_s = self._said_s = time.monotonic()

    def __call__(self, count: int) -> None:
        self._done += count
        now_s = time.monotonic()
        if now_s - self._said_s < _SAY_EVERY_S and self._done < self._total:
            return
        self._said_s = now_s
        speed = self._done / max(now_s - self._began_s, 1e-9)
        left_s = (self._total - self._done) / speed
        line = f"{self._done:,} of {self._total:,} pictures, {speed:.1f} images/s, {left_s:.0f} s left"
        self._console.print(line, highlight=False, markup=False)


def show_summary(console: Console, summary: Summary) -> None:
    """Print one line per subject and one over all, with the share of ALL and its 95 % interval."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("subject", overflow="fold")
    for column in ("cells", "ALL", "share ALL", "95 % interval", "to review", "failed"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in sorted(summary.subjects, key=_natural):
        table.add_row(Text(name or "(unknown)"), *_figures(summary.subjects[name]))
    table.add_section()
    table.add_row("all cells", *_figures(summary.total))
    console.print(table)
    note = "The interval (Wilson) is for the number of cells alone; it does not cover the model's mistakes."
    console.print(note, highlight=False, soft_wrap=True)
    console.print("Research use; labels of cells are no diagnosis.", highlight=False, soft_wrap=True)


def _figures(tally: Tally) -> list[str]:
    if tally.cells:
        low, high = wilson_interval(tally.positive, tally.cells)
        share, interval = f"{tally.positive / tally.cells:.1%}", f"{low:.1%} - {high:.1%}"
    else:
        share = interval = "-"
    return [f"{tally.cells:,}", f"{tally.positive:,}", share, interval, f"{tally.review:,}", f"{tally.failed:,}"]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which 9 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
