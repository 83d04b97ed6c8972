"""What a verdict becomes for the tools of a release: test results, annotations, a job's summary, series of numbers.

The folder is a registry: a format is one file with a pure function, so the same verdict and result always give the
same bytes, and nothing here knows where they go. `Wanted` is one `--output` of `tailcut gate`.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from tailcut import plugins
from tailcut.bench.load_values import LoadResult
from tailcut.errors import InputError
from tailcut.files import write_file
from tailcut.results import BenchResult, Verdict

FOLDER = "tailcut.bench.outputs"
_NAMED = re.compile(r"([a-z][a-z0-9_-]*)=(.*)", re.DOTALL)


class Output(Protocol):
    """One format."""

    HELP: str  # one line: what reads it

    def render(self, verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
        """The whole file. Every text in it that came from outside is escaped as the format asks."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One format and where it goes; no path: stdout."""

    format: str
    path: Path | None


def wanted(text: str) -> Wanted:
    """`FORMAT=FILE`, `FORMAT=-` for stdout, or a plain FILE for the verdict as JSON. Write ./a=b for a file "a=b"."""
    named = _NAMED.fullmatch(text)
    name, file = (named.group(1), named.group(2)) if named else ("json", text)
    if not file:
        raise InputError(f"--output {text!r} names no file; write FORMAT=FILE, such as junit=gate.xml, or FORMAT=-")
    return Wanted(plugins.require(FOLDER, name), None if file == "-" else Path(file))


def wanted_all(texts: Sequence[str]) -> tuple[Wanted, ...]:
    """Several of them; InputError when two would write the same place."""
    found = tuple(wanted(text) for text in texts)
    for one in found:
        if sum(other.path == one.path for other in found) > 1:
            raise InputError(f"two outputs would write to {one.path or 'stdout'}; give each a place of its own")
    return found


def write(
    outputs: Sequence[Wanted], verdict: Verdict, result: BenchResult, load_result: LoadResult | None = None
) -> None:
    """Every file, whole or not at all, each format rendered before the first is written; then what goes to stdout."""
    rendered = [(one, load(one.format).render(verdict, result, load_result)) for one in outputs]
    for one, text in rendered:
        if one.path is not None:
            write_file(one.path, text.encode("utf-8", "replace"))
    for one, text in rendered:
        if one.path is None:
            sys.stdout.write(text)


def load(name: str) -> Output:
    """The format of this name."""
    return cast("Output", plugins.load(FOLDER, name))
