"""What others made, as an ordinary Hugging Face directory; one file for each foreign format.

A file offers `SUMMARY` (one line for `tailcut import --list`), `MAKES`, `recognises` and `bring_in`. Nothing that is read is
believed: sizes, counts and names are checked before memory is taken, paths stay in their directory, pickles are refused.
Files whose name begins with `_` are shared helpers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from tailcut.allocation import Bits, LayerScores
from tailcut.progress import Reporter

Details = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """`config`: the Hugging Face directory that the source belongs to, for formats that do not say it all."""

    config: Path | None = None


@dataclass(frozen=True, slots=True)
class Brought:
    """What an importer says of its work. A model's files are in the directory it was given; `scores` are the other result.

    `bits`: matrices whose exact integers lie in sidecars (tailcut.sidecar). `origin` is the manifest's `source`.
    """

    origin: Mapping[str, str]
    details: Details = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    bits: Mapping[str, Bits] = field(default_factory=dict)
    scores: LayerScores | None = None


class Importer(Protocol):
    """What each file of this folder offers."""

    SUMMARY: str
    MAKES: Literal["model", "scores"]

    def recognises(self, source: Path) -> str | None:
        """What `source` is in a few words if it is this format, else None. Reads headers only."""
        ...

    def bring_in(self, source: Path, directory: Path, options: ImportOptions, report: Reporter) -> Brought:
        """Write the model into the existing, empty `directory`, or return scores and write nothing."""
        ...
