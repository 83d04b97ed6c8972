"""N:M validity, from the masks of the package: a kernel for 2:4 computes something else on a matrix that is not 2:4."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.allocation import NM, parse_nm
from tailcut.bench.checks import Case, Subject
from tailcut.bench.checks._judging import flag, missing
from tailcut.bench.checks._package import Counted, another, counted
from tailcut.bench.checks._seeded import seeded_on_disk
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.results import Check

PER_ENGINE: Final = False
PLAN: Final = "plan"
_NAME: Final = "N:M pattern"


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    pattern: Annotated[
        str | None,
        Field(
            description="2:4 (or another N:M): every matrix that was cut keeps at most N of M; plan: every matrix keeps "
            "the N:M that the manifest plans for it."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.pattern not in (None, PLAN):
            parse_nm(self.pattern)


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    if limits.pattern is None:
        return ()
    if subject.sparse is None:
        return (missing(_NAME, why="the package is not at hand: give it with --sparse"),)
    try:
        wrong = another(subject.sparse, subject.result.sparse.sha256, "sparse")
        sentence = wrong or _violation(subject.sparse, limits.pattern)
    except InputError as error:
        return (flag(_NAME, good=False, sentence=f"the pattern cannot be checked: {error}"),)
    said = "every group is as planned" if limits.pattern == PLAN else f"every cut matrix is {limits.pattern}"
    return (flag(_NAME, good=sentence is None, sentence=sentence or said),)


def _violation(package: Path, wanted: str) -> str | None:
    """The sentence on the first matrix that breaks the pattern, None if none does."""
    held = 0
    for matrix in counted(package):
        pattern = _pattern_of(matrix, wanted)
        if pattern is None:
            continue
        held += 1
        if (fullest := matrix.fullest(pattern)) > pattern.keep:
            return (
                f"{matrix.name} keeps {fullest} of {pattern.block} weights somewhere, {pattern} allows {pattern.keep}"
            )
    return None if held else f"no matrix of {package.name} was cut to a pattern"


def _pattern_of(matrix: Counted, wanted: str) -> NM | None:
    planned = matrix.promised.plan.pattern
    if wanted == PLAN:
        return planned if isinstance(planned, NM) else None
    return parse_nm(wanted) if planned.sparsity > 0 else None


def cases(folder: Path) -> tuple[Case, ...]:
    valid, broken = (seeded_on_disk(folder / name, broken=broken) for name, broken in (("a", False), ("b", True)))
    return (
        Case("a group of four with three weights fails 2:4", broken, {"pattern": "2:4"}, "fail"),
        Case("a matrix whose masks are 2:4 passes", valid, {"pattern": "2:4"}, "pass"),
        Case("a group with three weights fails the 2:4 that the manifest plans", broken, {"pattern": PLAN}, "fail"),
        Case("masks as the manifest plans them pass", valid, {"pattern": PLAN}, "pass"),
        Case("2:4 masks fail 1:4", valid, {"pattern": "1:4"}, "fail"),
    )
