"""Model directory -> heavy-tail scores of every prunable matrix, streamed one matrix at a time.

For each matrix: read it from safetensors, take its eigenvalues (from the cache if they were ever computed),
drop those within rounding error of zero, fit a tail with every metric asked for. Only one matrix is resident.
Per-matrix values are kept; what a block scores is derived from them by the allocator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, cast
from zipfile import BadZipFile

import numpy as np

from tailcut import __version__, plugins
from tailcut.allocation import LayerScore, LayerScores
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import Linear, find_linears, read_weight
from tailcut.compress.metrics import Metric
from tailcut.compress.spectra import Eigenvalues, cached_eigenvalues, resolve_device, significant
from tailcut.errors import InputError
from tailcut.files import write_file
from tailcut.progress import Reporter, silent

METRICS_PACKAGE: Final = "tailcut.compress.metrics"
# what zipfile and numpy raise for a damaged archive; RuntimeError: a flipped flag reads as encrypted or too new
_DAMAGED: Final = (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError, RuntimeError, KeyError)


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores and, by module name, the significant eigenvalues (float64, ascending) they were fitted to."""

    scores: LayerScores
    spectra: Mapping[str, Eigenvalues]


def measure(
    model_dir: Path,
    *,
    metrics: Sequence[str] = ("alpha_peak",),
    device: str = "auto",
    cache: Path | None = None,
    report: Reporter = silent,
) -> Measured:
    """Measure a Hugging Face directory. Each metric m gives the values `m`, `m.xmin` and `m.ks` of a layer.

    `device` is auto, cpu or cuda; `cache` is the spectra cache's directory (None: the user's cache directory).
    """
    fits = load_metrics(metrics)
    where = resolve_device(device)
    checkpoint = Checkpoint(model_dir)
    linears = find_linears(checkpoint)
    spectra: dict[str, Eigenvalues] = {}
    layers: list[LayerScore] = []
    for done, linear in enumerate(linears):
        report("measure", done, len(linears), linear.name)
        spectrum = significant(cached_eigenvalues(read_weight(checkpoint, linear), where, cache))
        spectra[linear.name] = spectrum
        checkpoint.release()
        layers.append(LayerScore(linear.name, linear.block, linear.shape, _values(linear, spectrum, fits)))
    report("measure", len(linears), len(linears))
    how = {
        "tool": f"tailcut {__version__}",
        "metrics": ",".join(fits),
        "eigenvalues": "float64 Gram matrix of the smaller side",
        "device": where,
    }
    scores = LayerScores(checkpoint.fingerprint(), tuple(layers), checkpoint.total_parameters(), how)
    return Measured(scores, spectra)


def load_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Metric names (spelt with - or _) -> the modules, under the name that scores carry; duplicates once."""
    if not names:
        raise InputError(f"no metric was named; choose from {', '.join(plugins.names(METRICS_PACKAGE))}")
    return {name.replace("-", "_"): cast(Metric, plugins.load(METRICS_PACKAGE, name)) for name in names}


def _values(linear: Linear, spectrum: Eigenvalues, metrics: Mapping[str, Metric]) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        try:
            fit = metric.fit(spectrum)
        except InputError as error:
            raise InputError(
                f"{linear.name}: {error}; the matrix {linear.shape} is zero or of very low rank and cannot be measured"
            ) from error
        if fit.failed:
            raise InputError(
                f"{linear.name}: {name} finds no power-law tail in its {spectrum.size} eigenvalues (they are tied or "
                "nearly so); measure another metric, or allocate with --allocator uniform"
            )
        values |= {name: fit.alpha, f"{name}.xmin": fit.xmin, f"{name}.ks": fit.ks}
    return values


def save_spectra(spectra: Mapping[str, Eigenvalues], path: Path) -> None:
    """Write eigenvalues by module name as .npz (no pickle), atomically; the same spectra give the same bytes."""
    buffer = BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(values, np.float64) for name, values in spectra.items()}
    np.savez(buffer, **arrays)
    write_file(path, buffer.getvalue())


def load_spectra(path: Path) -> dict[str, Eigenvalues]:
    """What `save_spectra` wrote: module name -> eigenvalues, float64, ascending."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            loaded = {name: archive[name] for name in archive.files}
    except _DAMAGED as error:
        raise InputError(f"{path}: not a spectra file, or a damaged one ({error}); measure the model again") from error
    for name, values in loaded.items():
        if values.dtype != np.float64 or values.ndim != 1:
            raise InputError(f"{path}: {name} is {values.dtype} {values.shape}, expected float64 eigenvalues in a row")
    return loaded
