"""Model directory -> scores of every prunable matrix, streamed one decoder block at a time.

Spectrum metrics: each matrix is read from safetensors, its eigenvalues taken (from the cache if they were ever
computed), those within rounding error of zero dropped, and only one matrix is resident. Metrics that look at inputs
run calibration text through the dense model, of which one block and the activations are resident. Per-matrix
values are kept; what a block scores is derived from them by the allocator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import torch

from tailcut import __version__
from tailcut.allocation import LayerScores
from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint
from tailcut.compress.blocks import max_positions
from tailcut.compress.calibration import Calibration, CalibrationTokens, draw
from tailcut.compress.discovery import Linear, linears_of_skeleton, read_weight
from tailcut.compress.inputs import DenseInputs, Seen
from tailcut.compress.metrics import FROM_TEXT, Matrix, Metric, Needs, Options, load_metrics
from tailcut.compress.resident import Weights
from tailcut.compress.scoring import Scorer
from tailcut.compress.skeleton import build_skeleton
from tailcut.compress.spectra import Eigenvalues, cached_eigenvalues, resolve_device, significant
from tailcut.errors import InputError
from tailcut.files import write_file
from tailcut.progress import Reporter, silent

# what zipfile and numpy raise for a damaged archive; RuntimeError: a flipped flag reads as encrypted or too new
_DAMAGED: Final = (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError, RuntimeError, KeyError)


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores and, by module name, the significant eigenvalues (float64, ascending) they were fitted to.

    Without a spectrum metric no eigenvalues are computed and `spectra` is empty.
    """

    scores: LayerScores
    spectra: Mapping[str, Eigenvalues]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Makes a linear into what metrics see of it."""

    checkpoint: Checkpoint
    solve: Callable[[Array], Eigenvalues]
    needs: frozenset[Needs]

    def matrix(self, linear: Linear, seen: Seen | None) -> Matrix:
        weight = read_weight(self.checkpoint, linear)
        spectrum = significant(self.solve(weight)) if "spectrum" in self.needs else None
        energy = None if seen is None else seen.energy[linear.name]
        return Matrix(linear.shape, spectrum, weight, energy, self.solve)


def measure(
    model_dir: Path,
    *,
    metrics: Sequence[str] = ("alpha_peak",),
    device: str = "auto",
    cache: Path | None = None,
    calibration: Calibration | None = None,
    options: Options | None = None,
    report: Reporter = silent,
) -> Measured:
    """Measure a Hugging Face directory. A metric m gives each layer the value `m`, further ones as `m.<key>`.

    `device` is auto, cpu or cuda; `cache` is the spectra cache's directory (None: the user's cache directory).
    `calibration` (None: the packaged text) is read only by metrics that look at inputs.
    """
    chosen = load_metrics(metrics)
    needs = frozenset(metric.NEEDS for metric in chosen.values())
    where = resolve_device(device)
    checkpoint = Checkpoint(model_dir)
    skeleton = build_skeleton(checkpoint)
    linears = linears_of_skeleton(checkpoint, skeleton)
    how, asked = _how(chosen, where), options or Options()
    inputs: DenseInputs | None = None
    if needs & set(FROM_TEXT):
        text = calibration or Calibration()
        tokens = draw(text, model_dir, max_positions(skeleton.model))
        inputs = DenseInputs(
            Weights(checkpoint, skeleton, where, torch.float32),
            tokens.tokens,
            asked.tokens if "pairs" in needs else 0,
            text.seed,
        )
        how |= _how_with_text(chosen, tokens, text, asked)
    reader = _Reader(checkpoint, partial(cached_eigenvalues, device=where, cache=cache), needs)
    scorer = Scorer(chosen, asked)
    spectra = _walk(reader, linears, inputs, scorer, report)
    layers, pairs = scorer.finish()
    scores = LayerScores(checkpoint.fingerprint(), layers, checkpoint.total_parameters(), how, pairs)
    return Measured(scores, spectra)


def _walk(
    reader: _Reader, linears: Sequence[Linear], inputs: DenseInputs | None, scorer: Scorer, report: Reporter
) -> dict[str, Eigenvalues]:
    """Every block in order, and in it every matrix, through the scorer -> the spectra that were taken."""
    spectra: dict[str, Eigenvalues] = {}
    done = 0
    for index, members in ((index, list(group)) for index, group in groupby(linears, lambda linear: linear.block)):
        report("measure", done, len(linears), members[0].name)
        seen = inputs.advance(index, members) if inputs is not None else None
        matrices: list[Matrix] = []
        for linear in members:
            if matrices:
                report("measure", done, len(linears), linear.name)
            matrix = reader.matrix(linear, seen)
            scorer.add_matrix(linear, matrix)
            if matrix.spectrum is not None:
                spectra[linear.name] = matrix.spectrum
            matrices.append(matrix if scorer.keeps_weights else replace(matrix, weight=None))
            reader.checkpoint.release()
            done += 1
        scorer.add_block(members, matrices, seen)
    report("measure", done, len(linears))
    return spectra


def _how(metrics: Mapping[str, Metric], device: str) -> dict[str, str]:
    """What decides the scores beside the model; goes into `measured`."""
    solver = {"eigenvalues": "float64 Gram matrix of the smaller side"}
    any_spectrum = any(metric.NEEDS in ("spectrum", "weight") for metric in metrics.values())
    return {"tool": f"tailcut {__version__}", "metrics": ",".join(metrics), "device": device} | (
        solver if any_spectrum else {}
    )


def _how_with_text(
    metrics: Mapping[str, Metric], tokens: CalibrationTokens, text: Calibration, options: Options
) -> dict[str, str]:
    how = {
        "calibration": tokens.name,
        "calibration_text_sha256": tokens.text_sha256,
        "calibration_tokens_sha256": tokens.sha256,
        "calibration_samples": str(tokens.tokens.shape[0]),
        "calibration_seqlen": str(tokens.tokens.shape[1]),
        "seed": str(text.seed),
    }
    if any(metric.NEEDS == "pairs" for metric in metrics.values()):
        how["tokens"] = str(min(options.tokens, tokens.tokens.size))
    if "owl" in metrics:
        how["outlier"] = repr(options.outlier)
    return how


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
