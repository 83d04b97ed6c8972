"""The work of a sweep, piece by piece: which rows are wanted, making a package, scoring it, one timed session.

What several rows need is made once: the scores of every allocator in one measurement, a plan's cut model for all its
weights, a dense package of each precision. Each piece is journalled by itself, so that a kill costs at most the piece
that was running.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from tailcut import __version__, codec
from tailcut.checkpoint import Checkpoint
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError, MissingEnvironmentError, TailcutError
from tailcut.files import write_file
from tailcut.manifest import MANIFEST_NAME
from tailcut.pipeline import plan
from tailcut.pipeline_work import Run, calibration_of, export_static, static_reason, workload_of
from tailcut.progress import Reporter
from tailcut.quantised import Precision
from tailcut.results import Machine, Quality, Ratio
from tailcut.stages import Stage, run_stages
from tailcut.sweep_grid import Cut, Grid
from tailcut.sweep_points import REFERENCE, SweepPoint
from tailcut.windows import EvalText

if TYPE_CHECKING:
    from tailcut.bench.many import Measured, Session

_EXPORTING: Final = ("head", "activation_bits", "kv_cache")
_SUFFIXES: Final[dict[str, Precision]] = {"int8": "int8", "q8": "int8", "int4": "int4", "q4": "int4"}
_MEMORY: Final = 0.75  # of the free memory; engines hold more for a moment while they load
_ACTIVATIONS: Final = 1 << 26  # bytes a worker needs beside the files it opens


@dataclass(frozen=True, slots=True)
class Job:
    """A sweep on this machine: what is asked for, where it happens, and what it is about."""

    grid: Grid
    out: Path
    model_sha256: str
    machine: Machine
    text: EvalText
    report: Reporter

    def directory(self, cut: Cut | None) -> Path:
        return self.out / "dense" if cut is None else self.out / "work" / cut.name

    @property
    def reference(self) -> Path:
        """The dense float32 package: the other side of every speed and every perplexity."""
        return self.directory(None) / "float32"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One row: an engine on a package. `stored` is the package's precision, `weights` what the engine multiplies with."""

    cut: Cut | None
    stored: Precision
    engine: str
    weights: Precision
    key: str = ""

    @property
    def is_reference(self) -> bool:
        return self.cut is None and self.engine == REFERENCE and self.stored == "float32"

    def __str__(self) -> str:
        return f"{self.cut or 'dense'} {self.weights} ({self.engine})"


@dataclass(frozen=True, slots=True)
class Nats:
    """Nats summed over each window's scored tokens."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    nll: tuple[float, ...]


def wanted(job: Job) -> tuple[Wanted, ...]:
    """Every row of the grid, the dense ones first, each once; engines that quantise by themselves take the dense model."""
    grid = job.grid
    ways = {name: way_of(name) for name in (*grid.engines, *grid.baselines)}
    runners = [name for name in grid.engines if ways[name] == "runs"]
    peers = [name for name in ways if ways[name] == "quantises" or name in grid.baselines]
    converters = [name for name in grid.engines if ways[name] == "converts"]
    if converters and "float32" not in grid.weights:
        raise InputError(f"{converters[0]} is made from float32 packages; add float32 to the weights")
    rows = [Wanted(None, "float32", REFERENCE, "float32")]
    rows += [Wanted(None, "float32", name, precision_of(name)) for name in peers]
    for cut in (None, *grid.cuts):
        rows += [Wanted(cut, weights, name, weights) for weights in grid.weights for name in runners]
        rows += [Wanted(cut, "float32", name, precision_of(name)) for name in converters]
    return tuple(replace(row, key=_key(job, row)) for row in dict.fromkeys(rows))


def way_of(engine: str) -> str:
    """runs: packages as they are; quantises: the dense model; converts: any float32 package, zeros kept."""
    from tailcut.bench import engines

    module = engines.load(engine)
    if not hasattr(module, "prepare"):
        return "runs"
    return "converts" if module.COMPRESSES else "quantises"


def precision_of(engine: str) -> Precision:
    """What an engine with weights of its own multiplies with, by its name."""
    return _SUFFIXES.get(engine.rpartition("-")[2], "float32")


def _key(job: Job, row: Wanted) -> str:
    """Hash of all that the measurement depends on: another setting, model, machine or version is another point."""
    recipe = job.grid.recipe
    named = asdict(row) | {"cut": row.cut and _settings(job, row.cut)}
    exporting = {name: getattr(recipe, name) for name in _EXPORTING}
    text = (job.text.sha256, recipe.text_context, recipe.windows)
    parts = [
        __version__, job.model_sha256, job.machine.fingerprint, named, exporting, asdict(workload_of(recipe)), text,
    ]  # fmt: skip
    return digest(parts)


def digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _stages(job: Job, cut: Cut) -> dict[str, Stage]:
    """`tailcut run`'s stages for a plan, in the plan's directory."""
    run = Run(job.grid.recipe_of(cut), job.directory(cut), job.report)
    return {stage.name: stage for stage in plan(run, job.model_sha256)}


def _settings(job: Job, cut: Cut) -> dict[str, Any]:
    stages = _stages(job, cut)
    return {name: dict(stages[name].settings) for name in ("measure", "allocate", "compress")}


def make_dense(job: Job, weights: Precision) -> None:
    """The dense package of a precision, unless it is there."""
    settings = {"model": job.model_sha256} | _export_settings(job, weights)
    stage = Stage(weights, (), settings, (weights,), lambda: _export(job, None, weights))
    run_stages(job.directory(None), (stage,), _teller(job, "dense"))


def make_package(job: Job, cut: Cut, weights: Precision) -> None:
    """Allocate, compress and export one plan; what is there already stays."""
    _measure_scores(job)
    directory, stages = job.directory(cut), _stages(job, cut)
    directory.mkdir(parents=True, exist_ok=True)
    scores = replace(
        stages["measure"],
        outputs=("scores.json",),
        work=lambda: write_file(directory / "scores.json", (job.out / "scores.json").read_bytes()),
    )
    export = Stage(
        weights, ("compress",), _export_settings(job, weights), (weights,), lambda: _export(job, cut, weights)
    )
    run_stages(directory, (scores, stages["allocate"], stages["compress"], export), _teller(job, str(cut)))
    kept = directory / f"{weights}.{MANIFEST_NAME}"  # small, and says what each layer became
    write_file(kept, (directory / weights / MANIFEST_NAME).read_bytes())


def _teller(job: Job, what: str) -> Any:  # noqa: ANN401  (a callback)
    return lambda name, skipped: None if skipped else job.report("make", 0, 1, f"{what}: {name}")


def _export_settings(job: Job, weights: Precision) -> dict[str, object]:
    recipe = job.grid.recipe
    return {name: getattr(recipe, name) for name in _EXPORTING} | {
        "weights": weights,
        "static": static_reason(recipe) is None and (recipe.context, recipe.prompt_tokens),
    }


def _measure_scores(job: Job) -> None:
    """The scores that any plan of the grid reads, measured in one pass over the model."""
    measuring = [_stages(job, cut)["measure"].settings for cut in job.grid.cuts]
    metrics = tuple(dict.fromkeys(name for each in measuring for name in cast(Sequence[str], each["metrics"])))
    texts = next((each["calibration"] for each in measuring if each["calibration"]), ())
    settings = dict(measuring[0]) | {"metrics": sorted(metrics), "calibration": texts}

    def work() -> None:
        from tailcut.compress.measure import measure

        recipe = job.grid.recipe
        found = measure(
            Path(recipe.model),
            metrics=metrics,
            device=recipe.device,
            calibration=calibration_of(recipe),
            report=job.report,
        )
        codec.save(found.scores, job.out / "scores.json")

    run_stages(job.out, (Stage("measure", (), settings, ("scores.json",), work),), _teller(job, "all plans"))


def _export(job: Job, cut: Cut | None, weights: Precision) -> None:
    from tailcut.export.run import export

    recipe, directory = job.grid.recipe, job.directory(cut)
    source = Path(recipe.model) if cut is None else directory / "model"
    export(
        source,
        directory / weights,
        weights=weights,
        head=recipe.head,
        activation_bits=recipe.activation_bits,
        kv_cache=recipe.kv_cache,
        overwrite=True,
        report=job.report,
    )
    if weights == "float32" and static_reason(recipe) is None:
        export_static(Run(recipe, directory, job.report), source, directory / f"{weights}-deepsparse")


def prepare(job: Job, rows: Sequence[Wanted]) -> None:
    """What engines open in place of the package, made from it where it is lacking; a row without it will say so."""
    from tailcut.bench import variants

    for row in rows:
        try:
            variants.prepare(row.engine, job.directory(row.cut) / row.stored, job.report)
        except InputError as error:
            job.report("variant", 1, 1, f"{row}: {error}")


def quality(job: Job, row: Wanted) -> tuple[Quality | None, str]:
    """Perplexity of a row's weights as its engine computes, against the dense float32 package; or why there is none.

    An engine on float32 weights computes what ONNX Runtime does (its logits were checked), which scores them for all.
    """
    from tailcut.bench.quality import compare, tokenise

    recipe = job.grid.recipe
    scorer = "onnxruntime" if row.weights == "float32" else row.engine
    _, bos = tokenise(job.reference, job.text, recipe.text_context, recipe.windows)
    try:
        dense = _nats(job, Wanted(None, "float32", REFERENCE, "float32"), "onnxruntime")
        own = _nats(job, row, scorer)
        found = compare(
            dense, own, text=job.text, context=recipe.text_context, bos=bos, measured_with=scorer, seed=recipe.seed
        )
    except TailcutError as error:  # no way to score, or not a number: the speed still stands
        return None, str(error)
    return found, ""


def _nats(job: Job, row: Wanted, scorer: str) -> Any:  # noqa: ANN401  numpy stays out of the lobby
    """Nats of each window, float64 [windows]: read if they were ever scored."""
    import numpy as np

    from tailcut.bench.quality import package_nll, tokenise

    recipe = job.grid.recipe
    text = (job.text.sha256, recipe.text_context, recipe.windows)
    cut = row.cut and _settings(job, row.cut)
    exporting = _export_settings(job, row.stored)
    name = digest([__version__, job.model_sha256, cut, exporting, scorer, row.weights, text])
    path = job.out / "nats" / f"{name}.json"
    if not path.is_file():
        package = job.directory(row.cut) / row.stored
        windows, _ = tokenise(job.reference, job.text, recipe.text_context, recipe.windows)
        found = package_nll(package, windows, workload_of(recipe), job.report, engine_name=scorer)
        codec.save(Nats(tuple(float(value) for value in found)), path)
    return np.asarray(codec.load(Nats, path).nll, np.float64)


def parts(job: Job, rows: Sequence[Wanted]) -> list[list[Wanted]]:
    """The rows in as few sessions as fit in memory together, each with the reference beside them."""
    import psutil

    room = int(psutil.virtual_memory().available * _MEMORY) - _footprint(job, None)
    found: list[list[Wanted]] = [[]]
    left = room
    for row in rows:
        size = 0 if row.is_reference else _footprint(job, row)
        if found[-1] and size > left:
            found.append([])
            left = room
        found[-1].append(row)
        left -= size
    return [part for part in found if part]


def _footprint(job: Job, row: Wanted | None) -> int:
    from tailcut.bench import engines

    package = job.reference if row is None else job.directory(row.cut) / row.stored
    opened = package if row is None else engines.load(row.engine).directory(package)
    files = opened.iterdir() if opened.is_dir() else ()
    return sum(path.stat().st_size for path in files if path.is_file()) + _ACTIVATIONS


def run_session(job: Job, rows: Sequence[Wanted]) -> tuple[SweepPoint, ...]:
    """Time these rows in turn with the reference; MissingEnvironmentError if the reference itself cannot run."""
    from tailcut.bench.many import Plan, Row, measure

    judged = {row: quality(job, row) for row in rows}
    recipe = job.grid.recipe
    work = workload_of(recipe)
    # as many steps as `tailcut bench` takes of a side, in visits of the same length
    visits = Plan(work, "decode", rounds=2 * recipe.blocks, steps=work.steps_per_visit, warmup=work.warmup_steps)
    others = [row for row in rows if not row.is_reference]
    seats = [Row(row.engine, job.directory(row.cut) / row.stored, row.weights) for row in others]
    session = measure(str(rows[0]), [Row(REFERENCE, job.reference, "float32"), *seats], visits, job.report)
    base, seen = session.rows[0], dict(zip(others, session.rows[1:], strict=True))
    if not base.ms:
        raise MissingEnvironmentError(f"the reference, {REFERENCE} on the dense package, did not run: {base.reason}")
    return tuple(_point(job, row, seen.get(row, base), session, *judged[row]) for row in rows)


def _point(
    job: Job, row: Wanted, seen: "Measured", session: "Session", found: Quality | None, why_not: str
) -> SweepPoint:
    from tailcut.bench.stats import median_ratio

    work, base = session.workload, session.rows[0]
    speedup = None
    if row.is_reference:
        speedup = Ratio(1.0, 1.0, 1.0, work.confidence)
    elif seen.ms:
        speedup = median_ratio(base.ms, seen.ms, confidence=work.confidence, seed=work.seed)
    same = ("reason", "version", "ms", "others_cpu_share", "load_seconds", "peak_rss_bytes", "bytes_on_disk")
    copied: Mapping[str, Any] = {name: getattr(seen, name) for name in (*same, "sparse_kernel", "sparse_reason")}
    return replace(
        unmeasured(job, row),
        machine=session.machine,
        facts=seen.facts,
        reference_ms=base.ms,
        speedup=speedup,
        stream_gb_per_s=session.stream_gb_per_s,
        quality=found,
        quality_reason=why_not,
        licence=seen.licence,
        **copied,
    )


def unmeasured(job: Job, row: Wanted, reason: str = "") -> SweepPoint:
    """A point with nothing but what it is of, and why."""
    return SweepPoint(
        key=row.key,
        model=Path(job.grid.recipe.model).name,
        model_sha256=job.model_sha256,
        allocator=row.cut.allocator if row.cut else None,
        sparsity=row.cut.sparsity if row.cut else 0.0,
        pattern=row.cut.pattern if row.cut else None,
        weights=row.weights,
        engine=row.engine,
        machine=job.machine,
        workload=workload_of(job.grid.recipe),
        reason=reason,
        made_by=f"tailcut {__version__} sweep",
    )


def model_bytes(model: Path) -> int:
    """Of all parameters in float32."""
    return 4 * Checkpoint(model).total_parameters()


def remove_package(directory: Path, weights: str) -> None:
    """A package, what engines made from it, and its reference logits."""
    for path in (*directory.glob(f"{weights}-*"), *directory.glob(f"{weights}.*"), directory / weights):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix == ".npy":
            path.unlink(missing_ok=True)
