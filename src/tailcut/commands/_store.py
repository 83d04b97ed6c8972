"""The option that names the results file, for every command that records or reads results."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tailcut.bench.store import Store


@dataclass(frozen=True, slots=True)
class StoreFile:
    """Where results are recorded."""

    store: Annotated[
        Path | None,
        typer.Option(help="The results file. [default: TAILCUT_RESULTS, or tailcut/results.sqlite in the data home]"),
    ] = None

    def open(self) -> "Store":
        """The store; its file is made with the first result."""
        from tailcut.bench.store import Store

        return Store(self.store or default_path())


def default_path() -> Path:
    """The user's own results file."""
    if named := os.environ.get("TAILCUT_RESULTS"):
        return Path(named)
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "tailcut" / "results.sqlite"
