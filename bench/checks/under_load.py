"""Under load: throughput and latency percentiles at several streams, decode steps at long contexts (`tailcut bench-load`).

A limit is a number, for every stream count (or context) that was measured, or says where it counts: `60 at 4 and 90 at 8`.
What is compared, and from which samples, is in `_load_figures`. The load must be of the packages and the machine of the
result: a verdict is of one pair on one machine.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._judging import flag, interval, missing, undecided
from tailcut.bench.checks._load_figures import FIGURES, Figure
from tailcut.bench.checks._seeded import seeded_result
from tailcut.bench.checks._seeded_load import (
    DENSE_ITL_P95_MS,
    DENSE_TTFT_P95_MS,
    of_another_machine,
    of_another_package,
    seeded_load,
)
from tailcut.bench.load_values import ContextPoint, EngineLoad, LoadPoint, LoadResult
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.results import BenchResult, Check, Outcome

PER_ENGINE: Final = True
_WHY: Final = "no load was given: measure it with `tailcut bench-load` and pass its file with --load"
_LOUD: Final = "the machine was disturbed in nearly all blocks: bench again when it is quieter"
_ANSWERS: Final[tuple[tuple[float, Outcome], ...]] = ((1.1, "fail"), (2.0, "pass"), (1.5, "inconclusive"))
_NUMBER: Final = r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,9})?"
_PLACE: Final = rf"{_NUMBER} at [1-9][0-9]{{0,7}}"
_PLACES: Final = rf"{_PLACE}(?: and {_PLACE})*"
# the pattern is for editors; a text that does not match it gets a sentence of our own
At = Positive | Annotated[str, Field(json_schema_extra={"pattern": f"^{_PLACES}$"})]


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    min_load_tokens_per_second: Annotated[
        At | None,
        Field(
            description="Tokens a second of all streams together, at least; 60 at 4: at 4 streams, else at every count."
        ),
    ] = None
    min_load_speedup: Annotated[
        At | None, Field(description="Tokens a second of all streams over dense, at least; 1.2 at 4: at 4 streams.")
    ] = None
    max_load_ttft_p95_ms: Annotated[
        At | None,
        Field(description="95th percentile of the time to first token in ms, at most; 900 at 4: at 4 streams."),
    ] = None
    max_load_ttft_p95_ratio: Annotated[
        At | None,
        Field(description="95th percentile of the time to first token over dense, at most; 1.1 at 4: at 4 streams."),
    ] = None
    max_load_itl_p95_ms: Annotated[
        At | None,
        Field(description="95th percentile between two tokens of a stream in ms, at most; 80 at 4: at 4 streams."),
    ] = None
    max_load_itl_p95_ratio: Annotated[
        At | None, Field(description="95th percentile between two tokens over dense, at most; 1 at 4: at 4 streams.")
    ] = None
    max_context_tpot_ms: Annotated[
        At | None, Field(description="Median decode step in ms, at most; 60 at 2048: at 2048 cached positions.")
    ] = None
    min_context_speedup: Annotated[
        At | None, Field(description="Decode speed over dense, at least; 1.2 at 2048: at 2048 cached positions.")
    ] = None

    def __post_init__(self) -> None:
        for one in fields(self):
            limit = getattr(self, one.name)
            if isinstance(limit, str):
                parsed(one.name, limit)


def parsed(key: str, limit: str) -> dict[int, float]:
    """`60 at 4 and 90 at 8` -> {4: 60, 8: 90}."""
    if not re.fullmatch(_PLACES, limit):
        raise InputError(f"{key} {limit[:60]!r} is neither a number nor a list of them such as '60 at 4 and 90 at 8'")
    pairs = [part.split(" at ") for part in limit.split(" and ")]
    found = {int(place): float(number) for number, place in pairs}
    if len(found) < len(pairs):
        raise InputError(f"{key} {limit[:60]!r} states two limits for one place")
    if not all(found.values()):
        raise InputError(f"{key} {limit[:60]!r} states a limit of 0; it must be greater than 0")
    return found


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    wanted = {one.name: limit for one in fields(limits) if (limit := getattr(limits, one.name)) is not None}
    load = subject.load
    if load is None:
        return tuple(missing(FIGURES[key].name, _number(limit), _WHY) for key, limit in wanted.items())
    if reason := _another(subject.result, load):
        return tuple(flag(FIGURES[key].name, good=False, sentence=f"{FIGURES[key].name}: {reason}") for key in wanted)
    engine = _measured(subject, load)
    if isinstance(engine, str):
        return tuple(
            undecided(FIGURES[key].name, f"{FIGURES[key].name}: {engine}", _number(wanted[key])) for key in wanted
        )
    return tuple(one for key, limit in wanted.items() for one in _judged(key, limit, engine, subject.confidence))


def _another(result: BenchResult, load: LoadResult) -> str | None:
    """Why the load says nothing of what was benched."""
    for role, here, there in (("dense", result.dense, load.dense), ("sparse", result.sparse, load.sparse)):
        if here.sha256 != there.sha256:
            return f"the load was measured with another {role} package than the result; measure both with the same two"
    return None


def _measured(subject: Subject, load: LoadResult) -> EngineLoad | str:
    """The judged engine's points, or why there are none."""
    here, there = subject.result.machine.fingerprint, load.machine.fingerprint
    if here != there:
        return (
            f"the load is of another machine (fingerprint {there or 'none'}, the result's {here or 'none'}); a verdict is of "
            "one machine: measure both on it"
        )
    found = next((one for one in load.engines if one.engine == subject.engine), None)
    if found is None:
        return f"the load holds no measurement of {subject.engine}: measure it with --engine {subject.engine}"
    if found.status != "measured":
        return f"{found.engine} was not measured under load: {found.reason}"
    return found


def _judged(key: str, limit: float | str, engine: EngineLoad, confidence: float) -> Iterator[Check]:
    """One check for every place that the limit names, or that was measured."""
    figure = FIGURES[key]
    points: dict[int, LoadPoint | ContextPoint] = (
        {point.streams: point for point in engine.streams}
        if figure.of_streams
        else {point.context: point for point in engine.contexts}
    )
    places = parsed(key, limit) if isinstance(limit, str) else dict.fromkeys(points, limit)
    option = "--streams" if figure.of_streams else "--contexts"
    if not places:
        yield missing(figure.name, _number(limit), f"the load has no such points: measure them with {option}")
    for place, own in places.items():
        point = points.get(place)
        name = figure.at(place)
        if point is None:
            yield missing(name, own, f"the load does not hold it: measure it with {option} {place}")
        else:
            yield _compared(name, own, figure, point, confidence)


def _compared(name: str, limit: float, figure: Figure, point: LoadPoint | ContextPoint, confidence: float) -> Check:
    found = f"not measured: {point.reason}" if point.reason else figure.of(point, confidence)
    if isinstance(found, str):
        return undecided(name, f"{name}: {found}", limit)
    loud = point.loud if isinstance(point, LoadPoint) else point.procedure is not None and point.procedure.loud
    doubt = _LOUD if loud else ""
    unit = figure.unit
    return interval(name, found, limit, at_least=figure.at_least, confidence=confidence, unit=unit, doubt=doubt)


def _number(limit: float | str) -> float | None:
    return None if isinstance(limit, str) else limit


def cases(folder: Path) -> tuple[Case, ...]:
    result = seeded_result(speedup=2.0)

    def under(load: LoadResult | None) -> Subject:
        return Subject(result, "seeded", load=load)

    tried: dict[str, float | str] = {  # 1.5x as good as the dense side
        "min_load_tokens_per_second": "150 at 4",
        "min_load_speedup": "1.5 at 4",
        "max_load_ttft_p95_ms": f"{DENSE_TTFT_P95_MS / 1.5:g} at 4",
        "max_load_ttft_p95_ratio": "0.667 at 4",
        "max_load_itl_p95_ms": f"{DENSE_ITL_P95_MS / 1.5:g} at 4",
        "max_load_itl_p95_ratio": "0.667 at 4",
        "max_context_tpot_ms": "6.667 at 2048",
        "min_context_speedup": 1.5,
    }
    found = [
        Case(
            f"{key}: sparse {speedup}x as good as dense, 1.5x is required",
            under(seeded_load(speedup=speedup)),
            {key: limit},
            outcome,
        )
        for key, limit in tried.items()
        for speedup, outcome in _ANSWERS
    ]
    good = seeded_load(speedup=2.0)
    rate, first = {"min_load_tokens_per_second": "150 at 4"}, {"max_load_ttft_p95_ms": "300 at 4"}
    return (
        *found,
        Case("a load of another package fails", under(of_another_package(good)), rate, "fail"),
        Case("a load of another machine is not compared", under(of_another_machine(good)), rate, "inconclusive"),
        Case("streams that nobody asked for fail", under(good), {"min_load_tokens_per_second": "1 at 16"}, "fail"),
        Case(
            "streams that found no memory are inconclusive",
            under(good),
            {"min_load_speedup": "0.1 at 8"},
            "inconclusive",
        ),
        Case(
            "a p95 of eight samples is inconclusive", under(seeded_load(speedup=9.0, requests=1)), first, "inconclusive"
        ),
        Case("a disturbed machine decides nothing", under(seeded_load(speedup=9.0, loud=True)), rate, "inconclusive"),
    )
