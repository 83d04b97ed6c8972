"""`tailcut sweep`: every package of a grid measured on this machine, resumable, within bounds on disk.

    OUT/scores.json            every allocator's scores, measured once
    OUT/dense/WEIGHTS          dense packages; float32 is the reference of every session
    OUT/work/PLAN/             allocation.json, the manifests of its packages; model and packages while they are needed
    OUT/nats/*.json            scored perplexities
    OUT/points/*.json          the journal: one file a finished session, written whole

A point is measured if the journal holds its key, a hash of all that it depends on. A package is removed when its points
are in the journal, a model when its packages are; so the most that lies on disk at once is the dense packages and one plan.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tailcut import codec
from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import held
from tailcut.pipeline_work import require_plannable
from tailcut.progress import Reporter, silent
from tailcut.sweep_grid import Cut, Grid
from tailcut.sweep_points import SweepJournal, SweepPoint
from tailcut.sweep_work import (
    Job,
    Wanted,
    digest,
    make_dense,
    make_package,
    model_bytes,
    parts,
    prepare,
    remove_package,
    run_session,
    unmeasured,
    wanted,
)

Record = Callable[[Sequence[SweepPoint]], object]
# of the float32 model: packages with fewer bits keep their embedding, which is most of a small model
_SHARE: Final = {"float32": 1.0, "float16": 0.7, "bfloat16": 0.7, "int8": 0.7, "int4": 0.7}
_LOCK: Final = ".sweep.lock"  # also says whose directory it is
_SPARE: Final = 1.15  # temporaries, tokenizers, graphs


@dataclass(frozen=True, slots=True)
class Swept:
    """The points of the grid in its order, and the engines that cannot run here with the reason."""

    points: tuple[SweepPoint, ...]
    absent: Mapping[str, str]


def sweep(
    grid: Grid,
    out: Path,
    *,
    keep: bool = False,
    retry: bool = False,
    record: Record = len,
    report: Reporter = silent,
) -> Swept:
    """Measure what the journal in `out` does not hold yet and return all points of the grid.

    keep: leave models and packages where they are. retry: measure again what could not be measured.
    record: called with the points of every session, those of earlier runs first.
    """
    for plan in grid.cuts:
        require_plannable(grid.recipe_of(plan))
    with directory_lock(out, report):
        job = open_job(grid, out, report)
        rows, absent = available(wanted(job))
        # measured ones last: they take the place of an earlier failure
        held = sorted(journal(out), key=lambda point: bool(point.ms))
        done = {point.key: point for point in held if point.ms or not retry}
        record([done[row.key] for row in rows if row.key in done])
        missing = [row for row in rows if row.key not in done]
        if missing:
            require_room(job, rows, keep)
        for number, cut in enumerate((None, *grid.cuts)):
            report("sweep", number, len(grid.cuts) + 1, str(cut or "dense baselines"))
            for point in finish(job, cut, [row for row in missing if row.cut == cut], keep, record):
                done[point.key] = point
        if not keep:
            shutil.rmtree(job.directory(None), ignore_errors=True)
        report("sweep", len(grid.cuts) + 1, len(grid.cuts) + 1)
    return Swept(tuple(done[row.key] for row in rows), absent)


def open_job(grid: Grid, out: Path, report: Reporter) -> Job:
    from tailcut.bench.machine import describe_machine
    from tailcut.texts import demo_heldout
    from tailcut.windows import read_text

    recipe = grid.recipe
    text = read_text(demo_heldout() if recipe.text == "demo" else Path(recipe.text))
    if recipe.calibration != "demo" and not recipe.calibration.startswith("datasets:"):
        read_text(Path(recipe.calibration))  # now, not after the dense baselines
    return Job(grid, out, Checkpoint(Path(recipe.model)).fingerprint(), describe_machine(), text, report)


def available(rows: Sequence[Wanted]) -> tuple[tuple[Wanted, ...], dict[str, str]]:
    """The rows whose engine can run here, and why the others cannot; an engine installed later adds its rows."""
    from tailcut.bench import engines

    reasons = {name: engines.load(name).available() for name in dict.fromkeys(row.engine for row in rows)}
    absent = {name: reason for name, reason in reasons.items() if reason is not None}
    found = tuple(row for row in rows if row.engine not in absent)
    if not any(row.cut for row in found):
        reason = "; ".join(f"{name}: {why}" for name, why in absent.items())
        raise MissingEnvironmentError(f"no engine that takes cut packages can run here ({reason})")
    return found, absent


def finish(job: Job, cut: Cut | None, missing: Sequence[Wanted], keep: bool, record: Record) -> Iterator[SweepPoint]:
    """Make the packages of one plan (None: the dense ones) that are still needed, measure them, and clear them away."""
    weights = tuple(dict.fromkeys(row.stored for row in missing))
    for stored in weights if cut is not None else ():
        yield from _measured(job, [row for row in missing if row.stored == stored], record)
        if not keep:
            remove_package(job.directory(cut), stored)
    if cut is None and missing:
        yield from _measured(job, missing, record)
    if not keep:
        clear(job, cut)


def _measured(job: Job, rows: Sequence[Wanted], record: Record) -> Iterator[SweepPoint]:
    """Sessions of rows of one plan; each is in the journal before the next begins.

    A plan that cannot be made (a budget that no layer's limit allows, say) is a reason in its points, not the sweep's end.
    """
    make_dense(job, "float32")
    try:
        for cut, stored in dict.fromkeys((row.cut, row.stored) for row in rows):
            make_dense(job, stored) if cut is None else make_package(job, cut, stored)
    except InputError as error:
        yield from _journalled(job, rows, tuple(unmeasured(job, row, str(error)) for row in rows), record)
        return
    prepare(job, rows)
    for part in parts(job, rows):
        yield from _journalled(job, part, run_session(job, part), record)


def _journalled(
    job: Job, rows: Sequence[Wanted], points: tuple[SweepPoint, ...], record: Record
) -> tuple[SweepPoint, ...]:
    name = digest([row.key for row in rows])[:16]
    codec.save(SweepJournal(points), job.out / "points" / f"{name}.json")
    record(points)
    return points


def clear(job: Job, cut: Cut | None) -> None:
    """Remove what no row needs any more; what is small and says how a package came to be stays."""
    directory = job.directory(cut)
    if cut is None:
        for path in directory.glob("*"):
            if path.is_dir() and path.name not in ("float32", ".stages"):
                shutil.rmtree(path)
        return
    for path in directory.glob("*"):
        if path.is_dir() and path.name != ".stages":
            shutil.rmtree(path)
        elif path.suffix == ".npy":
            path.unlink()


def journal(out: Path) -> tuple[SweepPoint, ...]:
    """Every point in the journal, of whatever grid and machine; InputError names a file that is damaged."""
    files = sorted((out / "points").glob("*.json"))
    return tuple(point for path in files for point in codec.load(SweepJournal, path).points)


@contextmanager
def directory_lock(out: Path, report: Reporter = silent) -> Iterator[None]:
    """One sweep at a time in a directory; a second one waits and then finds the work done.

    InputError if something else lies there: a sweep clears away what it made, by name.
    """
    if out.exists() and not (out / _LOCK).exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds something else than a sweep; name an empty or a new directory")
    out.mkdir(parents=True, exist_ok=True)
    with held(out / _LOCK, lambda: report("sweep", 0, 1, "waiting for another sweep in this directory to end")):
        yield


def require_room(job: Job, rows: Sequence[Wanted], keep: bool) -> None:
    """MissingEnvironmentError unless the disk can hold what lies there at once."""
    whole = model_bytes(Path(job.grid.recipe.model))
    dense = {(row.stored, "") if row.stored == row.weights else (row.stored, row.engine) for row in rows if not row.cut}
    a_plan = [_SHARE[weights] for weights in job.grid.weights]
    plans = len(job.grid.cuts) * (1 + sum(a_plan)) if keep else 1 + max(a_plan)
    # what an engine makes from a package is at most the package again
    shares = sum(_SHARE[stored] for stored, _ in dense) + plans
    needed = int(shares * whole * _SPARE)
    held = sum(path.stat().st_size for path in job.out.rglob("*") if path.is_file())
    free = shutil.disk_usage(job.out).free
    if free + held < needed:
        raise MissingEnvironmentError(
            f"{job.out}: the sweep needs about {needed / 1e9:.1f} GB of disk at once, {free / 1e9:.1f} GB are free; free "
            f"some space{', leave out --keep' if keep else ''} or name fewer weights"
        )


def require_points(points: Sequence[SweepPoint]) -> None:
    """InputError where there is nothing to say anything about."""
    cut = [point for point in points if not point.dense]
    if not any(point.ms for point in cut):
        reason = next((point.reason for point in cut if point.reason), "none was asked for")
        raise InputError(f"no cut model could be measured: {reason}")
