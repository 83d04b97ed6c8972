"""Whether the engine computes the model: its first logits beside ONNX Runtime's, and the export's beside torch's.

The gap is the largest difference of a logit over the largest logit. The bench refuses an engine beyond the engine's own
tolerance before it times it; this limit is the team's, and may be tighter. The export's gap is in the package's manifest, so
it is judged where the package is given.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Positive, Subject
from tailcut.bench.checks._judging import exact, missing
from tailcut.bench.checks._seeded import seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.manifest import Manifest, read_manifest
from tailcut.results import Check

PER_ENGINE: Final = True


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    max_logit_gap: Annotated[
        Positive | None,
        Field(description="Largest difference of a logit to the reference's over the largest logit, at most."),
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    limit = limits.max_logit_gap
    if limit is None:
        return ()
    gaps = [side.logits_gap for side in subject.sides or ()]
    name = "logits to ONNX Runtime's"
    worst = None if not gaps or None in gaps else max(gap for gap in gaps if gap is not None)
    also = "the larger of dense and sparse"
    engine = exact(name, worst, limit, at_least=False, also=also) if worst is not None else missing(name, limit, _WHY)
    return (engine, *([_exported(subject.sparse, limit)] if subject.sparse is not None else []))


_WHY: Final = "the result holds no logits gap: bench again with this version"


def _exported(package: Path, limit: float) -> Check:
    name = "logits of the export to torch's"
    try:
        gap = _gap(read_manifest(package))
    except InputError as error:
        return missing(name, limit, str(error))
    return (
        exact(name, gap, limit, at_least=False)
        if gap is not None
        else missing(name, limit, "the manifest holds no parity: it was exported without a check")
    )


def _gap(manifest: Manifest) -> float | None:
    found = [manifest.details.get(f"parity_max_abs_{what}") for what in ("error", "logit")]
    error, logit = (float(value) if isinstance(value, int | float) else None for value in found)
    return None if error is None or not logit else error / logit


def cases(folder: Path) -> tuple[Case, ...]:
    limits = {"max_logit_gap": 1e-3}
    wrong, right = (Subject(seeded_result(speedup=2.0, gap=gap), "seeded") for gap in (0.05, 1e-5))
    return (
        Case("logits 5 % away from the reference fail, 0.1 % are allowed", wrong, limits, "fail"),
        Case("logits as near as float32 sums pass", right, limits, "pass"),
    )
