"""Other tools that cut models, as peers in tables. A file here is a peer; its file name is what `engines install` takes.

A peer runs in an environment of its own and in a process of its own: what it is given is a model directory, calibration
token ids and a recipe in its own spelling, and what it leaves is a model directory with zeros that we score as ours.
"""

from pathlib import Path
from typing import Final, Protocol, cast

from tailcut import plugins
from tailcut.bench.environment import Recipe
from tailcut.bench.worker import Launch

PACKAGE: Final = "tailcut.bench.peers"


class Peer(Protocol):
    """What a module of this folder offers."""

    LICENCE: str
    RECIPE: Recipe

    def available(self) -> str | None:
        """None, or why it cannot run here and what to do."""
        ...

    def where(self) -> str:
        """The interpreter that its worker runs in."""
        ...

    def launch(self, model: Path, threads: int) -> Launch:
        """A worker that opens `model` and answers `cut` with {"recipe": YAML, "out": directory} and tokens int64."""
        ...


def names() -> tuple[str, ...]:
    return plugins.names(PACKAGE)


def load(name: str) -> Peer:
    """One peer by its name; InputError lists them."""
    return cast(Peer, plugins.load(PACKAGE, name))
