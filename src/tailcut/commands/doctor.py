"""`tailcut doctor`: what this machine can run, how trustworthy a measurement on it would be, and what to do about it."""

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.errors import EXIT_ENVIRONMENT
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.bench.doctor import Examination

_MARKS = {"good": "ok", "unknown": "?", "hint": "note", "blocked": "NO"}
_LEFT = 25  # columns of mark and title


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what is measured: bandwidth, noise, load.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON on stdout.")] = False,
) -> None:
    """Look at this machine: kernels, engines, processor, limits, memory, noise, and say what to do about each.

    The exit code is 0 if tailcut's kernels can run here, 4 if not. Waits for a benchmark that is running.
    """
    from tailcut.bench.doctor import examine

    with console() as report:
        found = examine(measure=not quick, report=report)
    if json:
        print(codec.to_json(found), end="")
    else:
        _show(found)
    if not found.can_run:
        raise typer.Exit(EXIT_ENVIRONMENT)


def _show(found: "Examination") -> None:
    width = min(120, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 120
    group = ""
    for one in found.findings:
        if one.group != group:
            group = one.group
            print(f"\n{group}")
        print(_wrapped(f"{_MARKS[one.level]:<5}{one.title:<{_LEFT - 5}}", one.sentence, width))
        if one.advice:
            print(_wrapped(" " * (_LEFT - 3) + "-> ", one.advice, width))
    hints = sum(one.level == "hint" for one in found.findings)
    verdict = "tailcut's kernels run here" if found.can_run else "tailcut's kernels cannot run here"
    print(f"\n{verdict}; {hints} of {len(found.findings)} findings have a note")


def _wrapped(left: str, text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=left, subsequent_indent=" " * len(left), break_on_hyphens=False)
