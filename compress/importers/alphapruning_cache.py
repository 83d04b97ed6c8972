"""AlphaPruning's metric caches: one number a matrix in a .npy file, as scores that `tailcut allocate` reads.

The published code saves `<cache>/<metric>.npy`: the values of all linears inside the decoder blocks, block after block in
the order of the model's modules (haiquanlu/AlphaPruning, lib/prune.py). The file does not say which model it is of; the
Hugging Face directory given with --config does, and the count must fit it. The metric is the file's name.

The order is that of the transformers release that measured: until 4.30 a Llama block listed down_proj before up_proj, later
ones up_proj before down_proj. The published caches do not say, so single values of these two may be swapped; means over
blocks, which the published code allocates by, are the same either way.
"""

import math
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from tailcut import __version__, plugins
from tailcut.allocation import LayerScore, LayerScores
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import find_linears
from tailcut.compress.importers import Brought, ImportOptions
from tailcut.errors import InputError
from tailcut.files import sha256_file
from tailcut.progress import Reporter

SUMMARY: Final = "AlphaPruning's cached metrics (.npy), as scores for a model given with --config"
MAKES: Final[Literal["model", "scores"]] = "scores"
METRICS: Final = "tailcut.compress.metrics"
# the published code's names where ours differ; its alpha_peak has the bound that alpha_peak_compat reproduces
NAMES: Final = {
    "alpha_peak": "alpha_peak_compat",
    "alpha_weighted": "alpha_hat",
    "random_distance": "rand_distance",
}
ORDER: Final = "this model's; a cache of transformers before 4.31 has up_proj and down_proj of a Llama block swapped"
_MAGIC: Final = b"\x93NUMPY"
_MOST: Final = 1 << 20  # matrices of a model


def recognises(source: Path) -> str | None:
    """A .npy file that holds one row of numbers."""
    try:
        with source.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                return None
        values = read_values(source)
    except (OSError, InputError):
        return None
    return f"a cache of {len(values)} values (AlphaPruning's metric files look so)"


def bring_in(source: Path, directory: Path, options: ImportOptions, report: Reporter) -> Brought:
    """Values -> scores of the linears of `options.config`; nothing is written."""
    if options.config is None:
        raise InputError(f"{source}: a cache does not name its model; give its Hugging Face directory with --config")
    values, checkpoint = read_values(source), Checkpoint(options.config)
    linears = find_linears(checkpoint)
    if len(values) != len(linears):
        raise InputError(
            f"{source}: {len(values)} values, {options.config} has {len(linears)} linears in its blocks; another model's cache"
        )
    metric = metric_of(source)
    layers = tuple(
        LayerScore(linear.name, linear.block, linear.shape, {metric: float(value)})
        for linear, value in zip(linears, values, strict=True)
    )
    measured = {
        "imported": f"AlphaPruning cache {source.name}",
        "order": ORDER,
        "sha256": sha256_file(source),
        "tailcut": __version__,
    }
    scores = LayerScores(checkpoint.fingerprint(), layers, checkpoint.total_parameters(), measured)
    return Brought({"name": source.name}, scores=scores)


def metric_of(source: Path) -> str:
    """Our name of the metric that a cache's file name says; InputError lists the known ones."""
    name = NAMES.get(source.stem, source.stem)
    known = {found.replace("-", "_") for found in plugins.names(METRICS)}
    if name not in known:
        spelt = sorted((known - set(NAMES.values())) | set(NAMES))
        raise InputError(f"{source}: the metric is the file's name, {source.stem!r} is none of {', '.join(spelt)}")
    return name


def read_values(source: Path) -> npt.NDArray[np.float64]:
    """The numbers of a cache; InputError on pickled objects, other shapes, and what is not finite."""
    if source.stat().st_size > 8 * _MOST + 4096:
        raise InputError(f"{source}: larger than {_MOST} numbers, which no model has matrices for")
    try:
        with np.errstate(over="ignore"):  # a size that no file has is the library's to refuse
            loaded = np.load(source, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError, OSError, SyntaxError, OverflowError, MemoryError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source}: not a plain .npy file of numbers ({reason}); pickles are never opened") from error
    if not isinstance(loaded, np.ndarray) or loaded.ndim != 1 or loaded.dtype.kind not in "fiu" or not loaded.size:
        raise InputError(f"{source}: needs one row of numbers, one for each matrix of a model")
    values = np.asarray(loaded, np.float64)
    wrong = next((float(value) for value in values if not math.isfinite(value)), None)
    if wrong is not None:
        raise InputError(f"{source}: holds {wrong}; measure the model with `tailcut measure` instead")
    return values
