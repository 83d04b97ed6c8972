"""Evidence that a sparse kernel ran: a speedup without it is something else's, and gone with the next version."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Subject
from tailcut.bench.checks._judging import flag
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.results import Check, Engagement

PER_ENGINE: Final = True
_NONE: Final = Engagement(proven=False, reason="the engine gave no evidence of a sparse kernel")


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    require_engagement: Annotated[
        bool | None,
        Field(
            description="The engine must show that a sparse kernel ran. Also where min_speedup is stated, unless false."
        ),
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    if not limits.require_engagement:
        return ()
    shown = subject.measured.engagement or _NONE
    return (flag("sparse kernel engaged", shown.proven, f"{subject.engine}: {shown.reason}"),)


def cases(folder: Path) -> tuple[Case, ...]:
    good = seeded_result(speedup=2.0)
    folds = Engagement(proven=False, reason="folds zeros to dense")
    silent, dense = (replace(good, engines=(replace(good.engines[0], engagement=shown),)) for shown in (None, folds))
    limits = {"require_engagement": True}
    return (
        Case("a fast engine without evidence fails", Subject(silent, "seeded"), limits, "fail"),
        Case("an engine that ran dense kernels fails", Subject(dense, "seeded"), limits, "fail"),
        Case("an engine that shows its sparse kernel passes", Subject(good, "seeded"), limits, "pass"),
    )
