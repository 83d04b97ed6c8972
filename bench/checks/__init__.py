"""Checks of the release gate: one file each, found by listing this folder. A module here satisfies `CheckModule`.

A check compares something measured with limits of its own, `Limits`, a frozen dataclass whose field names are the keys of a
policy file (unique over the folder). It passes only if the whole interval is on the good side of the limit, fails only
if the whole interval is on the bad side, and is inconclusive in between; what was not measured never passes.

`cases` are the check's self-test: a seeded regression that must fail, a good result that must pass, and where the value has
an interval one that must be inconclusive. A check without them fails `tailcut gate --self-test` and the contract test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

from pydantic import Field

from tailcut import plugins
from tailcut.accuracy import ZeroShot
from tailcut.bench.load_values import LoadResult
from tailcut.errors import InputError
from tailcut.results import BenchResult, Check, EngineResult, Outcome, Side

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]  # strictly between 0 and 1


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged: a result, one engine of it, and whatever else is at hand to judge it by."""

    result: BenchResult
    engine: str = ""  # the engine that a check of an engine looks at
    sparse: Path | None = None  # the package that is to be released
    dense: Path | None = None  # the package it was measured against
    tasks: ZeroShot | None = None
    baseline: BenchResult | None = None  # of an earlier release
    load: LoadResult | None = None  # several streams, long contexts
    confidence: float = 0.95  # of every interval

    @property
    def measured(self) -> EngineResult:
        """The engine's measurement; the gate asks a check of an engine only where there is one."""
        found = self.result.engine(self.engine)
        if found is None:
            raise InputError(f"the result holds no measurement of engine {self.engine}")
        return found

    @property
    def sides(self) -> tuple[Side, Side] | None:
        """Dense and sparse side of the engine, None if one is missing."""
        found = self.measured
        return (found.dense, found.sparse) if found.dense is not None and found.sparse is not None else None


@dataclass(frozen=True, slots=True)
class Case:
    """One self-test: a subject, limits by policy key, and what the check must say of them."""

    what: str
    subject: Subject
    limits: Mapping[str, float | bool | str]
    outcome: Outcome


class CheckModule(Protocol):
    """What a file in this folder provides."""

    PER_ENGINE: bool  # True: judged for each engine, with limits of its own where the policy states them
    Limits: type[Any]  # frozen dataclass; each field None (not judged) by default, with a description

    def check(self, subject: Subject, limits: Any) -> tuple[Check, ...]:  # noqa: ANN401  (its own Limits)
        """One check or more for every limit that is stated; none for the others."""
        ...

    def cases(self, folder: Path) -> tuple[Case, ...]:
        """Self-tests; packages that they need are written below `folder`."""
        ...


@cache
def names() -> tuple[str, ...]:
    return plugins.names(__name__)


@cache  # a policy asks for every check at every limit
def load(name: str) -> CheckModule:
    return cast(CheckModule, plugins.load(__name__, name))
