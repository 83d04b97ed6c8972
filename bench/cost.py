"""What products cost on this machine, for `tailcut allocate --speedup`: every shape of a model, dense and by sparsity.

tailcut's CPU kernels can multiply single matrices outside of a session, so each shape of a dense package is timed alone
in the package's own precision: matrices of random values, as many copies in turn as keep the caches as cold as the
model's other weights would. The settings of a shape take turns, round by round, because a machine's speed drifts. Then
the dense package decodes, and what its step takes beyond its products is the fixed part: head, attention, overhead.

Products timed alone are not those of a step: other weights, other bandwidth, and the engine leaves dense float32 ones to
ONNX Runtime. A cut package of the same model tells how much of that follows the products: its steps and the dense ones
are two equations for a factor of all products and the fixed part. Near that package's speed a plan then costs what it says.

Results of `tailcut bench-gpu` hold products already: `from_gpu` reads a table from them, without the fixed part.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast, get_args

import numpy as np

from tailcut import __version__
from tailcut.allocation import Dense, Pattern, Unstructured, parse_nm
from tailcut.bench.engines import tailcut as engine
from tailcut.bench.gpu import DENSE, GpuResult
from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine, l3_bytes, pinned
from tailcut.bench.roofline import read_dimensions
from tailcut.bench.worker import Worker, WorkerError
from tailcut.cost import Cost, CostTable, Shape
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.timing import random_pool, time_pool
from tailcut.manifest import Manifest, read_manifest
from tailcut.progress import Reporter, silent
from tailcut.quantised import Precision
from tailcut.results import Workload

SPARSITIES: Final = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
_APART: Final = 0.1  # share of the dense products by which those of a cut package must differ
_BITS: Final = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}
_GPU_WORDS: Final = {"bf16": "bfloat16", "int8": "int8", "int4": "int4"}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: `rounds` turns of `calls` products a setting, `steps` decode steps before and after."""

    rounds: int = 8
    calls: int = 8
    steps: int = 16


def measure_costs(
    package: Path,
    *,
    threads: int,
    sparsities: Sequence[float] = SPARSITIES,
    effort: Effort = Effort(),
    cut: Path | None = None,
    report: Reporter = silent,
) -> CostTable:
    """Costs of the products of a dense package on tailcut's CPU kernels, with the fixed part of its decode step.

    `cut`: a package of the same model with zeros, whose steps say what products cost inside of a step.
    """
    if reason := engine.unfit(package, Workload()):
        raise InputError(reason)
    if reason := engine.available():
        raise MissingEnvironmentError(reason)
    manifest, precision = read_manifest(package), _precision(package)
    if any(layer.plan.pattern.sparsity for layer in manifest.layers.values()):
        raise InputError(f"{package}: was cut; costs are measured on the dense package of the model")
    theirs = None if cut is None else _manifest_of_cut(cut, package, manifest, precision)
    patterns: tuple[Pattern, ...] = (
        Dense(),
        *(Unstructured(sparsity) for sparsity in sorted(set(sparsities)) if sparsity > 0.0),
    )
    shapes = sorted({layer.shape for layer in manifest.layers.values()})
    packages = [package] if cut is None else [package, cut]
    with machine_lock(report):
        machine = describe_machine()
        before = [_steps(path, threads, effort) for path in packages]
        entries: list[Cost] = []
        for done, shape in enumerate(shapes, 1):
            entries += _shape_costs(shape, patterns, precision, threads, effort, _pool_bytes(manifest, precision))
            report("cost", done, len(shapes), f"{shape[0]} x {shape[1]}")
        steps, *cut_steps = [
            early + _steps(path, threads, effort) for early, path in zip(before, packages, strict=True)
        ]
    made_by = f"tailcut {__version__} cost"
    alone = CostTable("tailcut", machine, threads, tuple(entries), {}, {precision: steps}, made_by)
    dense = _products_ms(alone, manifest, precision), float(np.median(steps))
    if theirs is None:
        return replace(alone, fixed_ms={precision: max(0.0, dense[1] - dense[0])})
    found = calibrated(dense, (_products_ms(alone, theirs, precision), float(np.median(cut_steps[0]))))
    table = scaled(alone, found.factor)
    return replace(table, fixed_ms={precision: found.fixed_ms}, cut_step_ms={precision: cut_steps[0]})


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a product costs inside of a step, over what it costs alone, and what a step takes beside its products."""

    factor: float
    fixed_ms: float


def calibrated(dense: tuple[float, float], cut: tuple[float, float]) -> Calibrated:
    """From (products alone, step) of two packages, milliseconds: step = fixed + factor * products, nothing below 0.

    InputError where the two are too much alike to tell: products less than a tenth apart, or a cut step that is no faster.
    """
    apart = dense[0] - cut[0]
    if apart < _APART * dense[0]:
        raise InputError(
            f"the products of the cut package take {cut[0]:.3g} ms alone, those of the dense one {dense[0]:.3g}: too much alike to "
            "calibrate by; give a package that is cut more"
        )
    factor = (dense[1] - cut[1]) / apart
    if factor <= 0.0:
        raise InputError(
            f"the cut package decodes no faster here ({cut[1]:.3g} ms a step, dense {dense[1]:.3g} ms), so there is nothing to "
            "calibrate by; measure without --cut, or on a quieter machine"
        )
    factor = min(factor, dense[1] / dense[0])
    return Calibrated(factor, dense[1] - factor * dense[0])


def scaled(table: CostTable, factor: float) -> CostTable:
    """Every product times `factor`, samples too."""
    entries = tuple(
        replace(entry, ms=entry.ms * factor, samples_ms=tuple(factor * ms for ms in entry.samples_ms))
        for entry in table.entries
    )
    return replace(table, entries=entries, factor=factor)


def _products_ms(table: CostTable, manifest: Manifest, precision: Precision) -> float:
    """All block matrices of a package, each timed alone, by the zeros that they really have."""
    total = 0.0
    for layer in manifest.layers.values():
        pattern: Pattern = Unstructured(layer.sparsity) if layer.plan.pattern.sparsity else Dense()
        total += table.curve(layer.shape, precision).ms(pattern)
    return total


def _manifest_of_cut(cut: Path, package: Path, manifest: Manifest, precision: Precision) -> Manifest:
    """Of `cut`; InputError unless it is the same model with zeros, in the same precision, that the engine takes."""
    if reason := engine.unfit(cut, Workload()):
        raise InputError(reason)
    theirs = read_manifest(cut)
    if _shapes(theirs) != _shapes(manifest):
        raise InputError(f"{cut}: its matrices are not those of {package}; give a cut package of the same model")
    if (stated := _precision(cut)) != precision:
        raise InputError(f"{cut}: its weights are {stated}, those of {package} {precision}; export both alike")
    if not any(layer.zeros for layer in theirs.layers.values()):
        raise InputError(f"{cut}: holds no zeros; give a package that `tailcut compress` cut")
    return theirs


def _shapes(manifest: Manifest) -> dict[str, Shape]:
    return {name: layer.shape for name, layer in manifest.layers.items()}


def from_gpu(result: GpuResult) -> CostTable:
    """The products of one row in a result of `tailcut bench-gpu`: dense, 2:4 and unstructured, where dense is beside."""
    entries = []
    for product in result.products:
        read = _contender(product.contender)
        if product.rows == 1 and read is not None and product.us:
            ms = tuple(us / 1e3 for us in product.us)
            entries.append(Cost(product.shape, read[0], read[1], float(np.median(ms)), ms))
    if not entries:
        raise InputError("the GPU result holds no products of one row; run tailcut bench-gpu with --rows 1")
    return CostTable("tailcut-cuda", result.machine, 1, tuple(entries), {}, {}, result.made_by)


def _contender(name: str) -> tuple[Pattern, Precision] | None:
    """ "2:4 bf16" -> (NM(2, 4), "bfloat16"); None for what is not tailcut's or dense."""
    if name == DENSE:
        return Dense(), "bfloat16"
    if name == "int4":
        return Dense(), "int4"
    found = re.fullmatch(r"(?:unstructured (\d+)%|(\d+:\d+)) (bf16|int8|int4)", name)
    if found is None:
        return None
    pattern: Pattern = Unstructured(int(found[1]) / 100) if found[1] else parse_nm(found[2])
    return pattern, cast(Precision, _GPU_WORDS[found[3]])


def _precision(package: Path) -> Precision:
    stated = read_manifest(package).details.get("precision", "float32")
    if stated not in get_args(Precision):
        raise InputError(f"{package}: its manifest says precision {stated!r}; export it again")
    return cast(Precision, stated)


def _pool_bytes(manifest: Manifest, precision: Precision) -> int:
    """Weights that a step reads between two uses of a matrix, but no more than what empties the caches."""
    return min(2 * max(l3_bytes(), 1 << 25), manifest.prunable_parameters * _BITS[precision] // 8)


def _shape_costs(
    shape: Shape, patterns: Sequence[Pattern], precision: Precision, threads: int, effort: Effort, pool_bytes: int
) -> list[Cost]:
    """Every pattern of one shape, each once a round; a sample is the median of a round's calls."""
    pools = {pattern: random_pool(precision, shape, pattern.sparsity, pool_bytes) for pattern in patterns}
    x = np.random.default_rng(1).standard_normal((1, shape[1]), np.float32)
    samples: dict[Pattern, list[float]] = {pattern: [] for pattern in patterns}
    with pinned(threads):
        for turn in range(-1, effort.rounds):  # the first turn warms up
            for pattern, pool in pools.items():
                seconds = time_pool(pool, x, threads, effort.calls, max(turn, 0) * effort.calls)
                if turn >= 0:
                    samples[pattern].append(1e3 * float(np.median(seconds)))
    return [Cost(shape, p, precision, float(np.median(ms)), tuple(ms)) for p, ms in samples.items()]


def _steps(package: Path, threads: int, effort: Effort) -> tuple[float, ...]:
    """Milliseconds of a package's decode steps."""
    context = 4 * effort.steps
    workload = Workload(prompt_tokens=1, new_tokens=effort.steps, context=context, threads=threads)
    tokens = np.random.default_rng(0).integers(0, read_dimensions(package).vocab, (1, context), np.int64)
    launch = engine.launch(package, "decode", workload)
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        evidence, _ = worker.ask("describe")
        if reason := engine.refuse(evidence):
            raise WorkerError(f"{package}: {reason}")
        _, arrays = worker.ask("decode", {"tokens": tokens}, context=context, seed=0, steps=effort.steps, warmup=2)
        worker.close()
    return tuple(float(ms) for ms in arrays["ms"])
