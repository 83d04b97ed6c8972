"""Models that `tailcut models get` can make on a machine without a model hub; one file each.

A file offers `SUMMARY` (one line for `tailcut models list`) and `make`, which writes an ordinary Hugging
Face directory (safetensors, config, tokenizer) with a manifest into an empty directory it is given. Nothing
here needs torch. Files whose name begins with `_` are shared helpers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tailcut.manifest import Manifest
from tailcut.progress import Reporter

DType = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Choices of a made-up model; a model with real weights accepts only the defaults."""

    like: str = ""  # whose shapes: "tiny", "1.1b", "7b"
    dtype: DType | None = None  # None: the model's own default
    seed: int = 0


class Maker(Protocol):
    """What each file of this folder offers."""

    SUMMARY: str

    def make(self, directory: Path, settings: ModelSettings, report: Reporter) -> Manifest:
        """Write the model's files into the existing, empty `directory`; the manifest is written by the caller."""
        ...
