"""`bench-load`: concurrent streams and a series of contexts, dense beside sparse on each engine, in ABBA order.

Both sides are open at once and only one computes. What an engine cannot do is "not measured" with the reason. Each point is
a comparison of its own, so a measurement that was broken off goes on with the points that are missing: they are kept beside
the output until it is written, and taken again only on the same machine, packages and plan.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tailcut import __version__, codec
from tailcut.bench import engines as registry
from tailcut.bench import load_contexts as contexts
from tailcut.bench import load_streams as streams
from tailcut.bench.engines import Engine
from tailcut.bench.load_sides import Sides
from tailcut.bench.load_values import ContextPoint, EngineLoad, LoadPlan, LoadPoint, LoadResult
from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine, usable_cpus
from tailcut.bench.pair import Raw, open_sides
from tailcut.bench.run import Session, package_facts
from tailcut.bench.turns import ROLES, Role
from tailcut.errors import InputError, MissingEnvironmentError, TailcutError
from tailcut.progress import Reporter, silent

Point = TypeVar("Point", LoadPoint, ContextPoint)
_NO_SERVING = "its worker runs one sequence or a fixed batch at a time, not sequences that come and go"


def bench_load(
    dense: Path,
    sparse: Path,
    *,
    engines: Sequence[str],
    plan: LoadPlan,
    partial: Path | None = None,
    report: Reporter = silent,
) -> LoadResult:
    """Measure every point of the plan on every engine; `partial` is where finished points are kept meanwhile."""
    loaded = {name: registry.load(name) for name in dict.fromkeys(engines)}
    if not loaded:
        raise InputError(f"no engine was named; choose from {', '.join(registry.names())}")
    if plan.threads > len(usable_cpus()):
        raise InputError(f"threads {plan.threads} are more than the {len(usable_cpus())} CPUs usable here")
    _require_positions(dense, plan)
    session = Session(dense, sparse, plan.opening, report)
    with machine_lock(report):
        blank = LoadResult(
            machine=describe_machine(),
            plan=plan,
            dense=package_facts(dense),
            sparse=package_facts(sparse),
            engines=(),
            made_by=f"tailcut {__version__} bench-load",
        )
        job = _Job(session, plan, blank, partial, report)
        for name, engine in loaded.items():
            job.measure(name, engine)
        return replace(job.result, engines=tuple(_of(job.result, name) for name in loaded))


def partial_path(output: Path) -> Path:
    """Where finished points lie until `output` is written."""
    return output.with_name(f"{output.name}.partial")


class _Job:
    """The result as far as it has come."""

    def __init__(
        self, session: Session, plan: LoadPlan, blank: LoadResult, partial: Path | None, report: Reporter
    ) -> None:
        self.session, self.plan, self.partial, self.report = session, plan, partial, report
        self.result = _resumed(blank, partial)

    def measure(self, name: str, engine: Engine) -> None:
        """Add what is missing of one engine."""
        known = next((found for found in self.result.engines if found.engine == name), None)
        self._put(known or EngineLoad(engine=name, status="not measured", licence=engine.LICENCE))
        try:
            self._require_fit(engine)
            for counts, lengths in self._missing(name, engine):
                self._some(name, engine, counts, lengths)
        except MissingEnvironmentError as error:  # what was measured before it stays
            self._put(replace(_of(self.result, name), reason=str(error)))
        done = _of(self.result, name)
        self._put(
            replace(
                done,
                streams=tuple(sorted(done.streams, key=lambda point: self.plan.streams.index(point.streams))),
                contexts=tuple(sorted(done.contexts, key=lambda point: self.plan.contexts.index(point.context))),
                cautions=(*streams.cautions(done, self.plan), *contexts.cautions(done)),
            )
        )

    def _require_fit(self, engine: Engine) -> None:
        reason = engine.available()
        if reason is None and not self.plan.contexts and not _serves(engine):
            reason = _NO_SERVING
        for role in ROLES if reason is None else ():
            unfit = engine.unfit(self.session.packages[role], self.plan.opening)
            reason = reason or (f"{role} package: {unfit}" if unfit else None)
        if reason:
            raise MissingEnvironmentError(reason)

    def _missing(self, name: str, engine: Engine) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Stream counts and contexts that are still to be measured, by what one pair of workers can do."""
        done = _of(self.result, name)
        counts = tuple(n for n in self.plan.streams if n not in {point.streams for point in done.streams})
        lengths = tuple(n for n in self.plan.contexts if n not in {point.context for point in done.contexts})
        if not _serves(engine):
            for count in counts:
                self._add(name, LoadPoint(count, _NO_SERVING))
            counts = ()
        if engine.SEPARATE_PHASES:  # its graphs are made for one context
            yield from (((), (length,)) for length in lengths)
        elif counts or lengths:
            yield counts, lengths

    def _some(self, name: str, engine: Engine, counts: tuple[int, ...], lengths: tuple[int, ...]) -> None:
        """Open one pair of workers and measure these points with it."""
        raw: dict[Role, Raw] = {role: Raw() for role in ROLES}
        work = self.plan.opening if not engine.SEPARATE_PHASES else self.plan.workload(lengths[0])
        pair = replace(self.session.pair, workload=work)
        with ExitStack() as stack:
            workers = open_sides(stack, name, engine, pair, "decode", raw, self.session.references)
            sides = Sides(name, engine, self.session, workers, raw, self.plan, self.report)
            self._put(sides.described(_of(self.result, name)))
            for count in counts:
                self._add(name, streams.measure(sides, count))
            for length in lengths:
                self._add(name, contexts.measure(sides, length))

    def _add(self, name: str, point: LoadPoint | ContextPoint) -> None:
        self._put(_of(self.result, name).with_point(point))
        if self.partial is not None:
            codec.save(self.result, self.partial)

    def _put(self, engine: EngineLoad) -> None:
        others = tuple(one for one in self.result.engines if one.engine != engine.engine)
        self.result = replace(self.result, engines=(*others, engine))


def _serves(engine: Engine) -> bool:
    return bool(getattr(engine, "SERVES", False))


def _of(result: LoadResult, name: str) -> EngineLoad:
    return next(one for one in result.engines if one.engine == name)


def _resumed(blank: LoadResult, partial: Path | None) -> LoadResult:
    """The blank result, with the points of an earlier run of the same thing; points that failed are tried again."""
    if partial is None or not partial.is_file():
        return blank
    try:
        found = codec.load(LoadResult, partial)
    except TailcutError:  # of another version: it is only a shortcut
        return blank
    same = (found.plan, found.dense, found.sparse) == (blank.plan, blank.dense, blank.sparse)
    if not same or found.machine != blank.machine:
        return blank
    kept = (replace(one, reason="", streams=_good(one.streams), contexts=_good(one.contexts)) for one in found.engines)
    return replace(blank, engines=tuple(kept))


def _good(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple(point for point in points if not point.reason)


def _require_positions(package: Path, plan: LoadPlan) -> None:
    """InputError when a request is longer than the model's positions; longer contexts are only left out."""
    limit = contexts.position_limit(package)
    if plan.streams and limit is not None and plan.positions > limit:
        raise InputError(
            f"{plan.prompt_tokens} prompt and {plan.new_tokens} new tokens are more than the {limit} positions of "
            f"{package.name}; take fewer"
        )
