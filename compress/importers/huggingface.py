"""Dense Hugging Face directories with zeros: what Wanda, SparseGPT, AlphaPruning, OWL and others save.

The weights are copied, the zeros are counted, and the manifest gets the plan that follows from them. Code that prunes by
multiplying with a mask leaves -0.0 behind, which the bitmask would keep as a value: in the matrices of the decoder blocks
it is written as 0.0, and the manifest says how many there were. No other bit changes.
"""

from pathlib import Path
from typing import Final, Literal

import numpy as np

from tailcut.bitmask import Array, nonzero_bits
from tailcut.checkpoint import SINGLE_NAME, Checkpoint
from tailcut.compress.discovery import find_linears
from tailcut.compress.importers import Brought, ImportOptions
from tailcut.compress.importers._reading import open_checkpoint, quantised_by, rewrite, try_config
from tailcut.errors import InputError
from tailcut.progress import Reporter

SUMMARY: Final = "dense Hugging Face directories with zeros (Wanda, SparseGPT, AlphaPruning, llm-compressor, ...)"
MAKES: Final[Literal["model", "scores"]] = "model"


def recognises(source: Path) -> str | None:
    """A directory with config.json whose weights are not quantised."""
    config = try_config(source)
    if config is None:
        return None
    return "a Hugging Face directory" if quantised_by(config) is None else None


def bring_in(source: Path, directory: Path, options: ImportOptions, report: Reporter) -> Brought:
    """Copy the weights; `options` is not used."""
    method = quantised_by(try_config(source) or {})
    if method is not None:
        raise InputError(f"{source}: its weights are quantised ({method}); only unquantised directories are adopted")
    checkpoint = open_checkpoint(source)
    cut = {linear.tensor for linear in find_linears(checkpoint)}
    turned = 0

    def read(name: str) -> Array:
        nonlocal turned
        if name not in cut:
            return checkpoint.read(name)
        plain, count = without_signed_zeros(checkpoint.read_finite(name))
        turned += count
        return plain

    rewrite(checkpoint, directory, {file: checkpoint.names_in(file) for file in checkpoint.files}, read, report)
    single = {"single_file": True} if [path.name for path in checkpoint.files] == [SINGLE_NAME] else {}
    return Brought(origin(checkpoint), {"signed_zeros": turned, **single})


def without_signed_zeros(array: Array) -> tuple[Array, int]:
    """An array with 0.0 for -0.0, and how many there were; the array itself where there are none."""
    signed = nonzero_bits(array) & (array.astype(np.float32, copy=False) == 0)
    count = int(np.count_nonzero(signed))
    if not count:
        return array, 0
    plain = np.array(array)
    plain[signed] = 0
    return plain, count


def origin(checkpoint: Checkpoint) -> dict[str, str]:
    """The manifest's `source` of a directory."""
    return {"model": checkpoint.fingerprint(), "name": checkpoint.directory.resolve().name}
