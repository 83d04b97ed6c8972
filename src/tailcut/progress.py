"""What is shown of work: progress on stderr, a live bar on a terminal and plain lines elsewhere; tables on stdout.

Library code never prints. It calls a `Reporter` it was given; `silent` is the default.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH: Final = 160  # columns of a table in a file or a log, where there is no terminal to wrap for


class Reporter(Protocol):
    """Called as work goes on: which stage, how many of how many are done, and on what."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """The reporter of library calls: says nothing."""


@contextmanager
def console(*, quiet: bool = False) -> Iterator[Reporter]:
    """The command line's reporter: rich bars when stderr is a terminal, else a line now and then."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as reporter:
            yield reporter
    else:
        yield _Lines()


def tables() -> "Console":
    """Where a command prints its tables: as wide as the terminal; in a log wide enough to keep a name in one line."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


class _Lines:
    """One line when a stage begins, at most one every five seconds, and one when it ends."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        due = stage not in self._last or done >= total or now - self._last[stage] > 5
        if due:
            self._last[stage] = now
            print(f"{stage}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def _bars() -> Iterator[Reporter]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, int] = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = int(bars.add_task(stage, total=total, note=""))
            bars.update(bars.task_ids[tasks[stage]], completed=done, total=total, note=note[-60:])

        yield report
