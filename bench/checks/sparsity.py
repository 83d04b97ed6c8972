"""Zeros in the linears of the decoder blocks: counted in the package where it is given, else as the bench read its manifest.

A package that holds fewer zeros in some matrix than its manifest promises fails whatever its mean is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from pydantic import Field

from tailcut.bench.checks import Case, Share, Subject
from tailcut.bench.checks._judging import exact, flag
from tailcut.bench.checks._package import another, counted
from tailcut.bench.checks._seeded import seeded_on_disk, seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.results import Check

PER_ENGINE: Final = False
_ROUNDING: Final = 5e-4  # budgets round to whole weights, matrix by matrix


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    min_sparsity: Annotated[
        Share | None, Field(description="Zeros over the weights of the decoder blocks' linears, at least.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    limit = limits.min_sparsity
    if limit is None:
        return ()
    if subject.sparse is None:
        promised = subject.result.sparse.sparsity
        return (exact("sparsity", promised, limit, at_least=True, slack=_ROUNDING, also="by the manifest"),)
    try:
        value, short = _counted(subject.sparse)
    except InputError as error:
        return (flag("sparsity", good=False, sentence=f"sparsity cannot be counted: {error}"),)
    wrong = another(subject.sparse, subject.result.sparse.sha256, "sparse") or short
    if wrong:
        return (flag("sparsity", good=False, sentence=wrong),)
    return (exact("sparsity", value, limit, at_least=True, slack=_ROUNDING, also="counted in the package"),)


def _counted(package: Path) -> tuple[float, str | None]:
    """Zeros over weights, and the sentence on the first matrix that has fewer than promised."""
    zeros = weights = 0
    short = None
    for matrix in counted(package):
        zeros, weights = zeros + matrix.zeros, weights + matrix.kept.size
        if short is None and matrix.zeros < matrix.promised.zeros:
            short = f"{matrix.name} holds {matrix.zeros} zeros, its manifest promises {matrix.promised.zeros}"
    return zeros / max(1, weights), short


def cases(folder: Path) -> tuple[Case, ...]:
    limits = {"min_sparsity": 0.5}
    honest, lying = (seeded_on_disk(folder / name, promised=promised) for name, promised in (("a", 0.5), ("b", 0.75)))
    dense = Subject(seeded_result(speedup=2.0, sparsity=0.3))
    return (
        Case("a manifest with 30 % zeros fails, 50 % are required", dense, limits, "fail"),
        Case("a package with 50 % zeros passes", honest, limits, "pass"),
        Case("a package with 50 % zeros and 75 % in its manifest fails", lying, limits, "fail"),
        Case("a package with 50 % zeros fails where 60 % are required", honest, {"min_sparsity": 0.6}, "fail"),
    )
