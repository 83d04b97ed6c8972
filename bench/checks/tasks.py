"""Accuracy on multiple-choice tasks (`tailcut zero-shot`): how much of the dense model's is left.

Recovery is r = s / d, mean accuracies over tasks (by `acc`, every task the same weight) of sparse and dense on the same items.
Its standard error is that of a paired ratio estimate: of the items' s_i - r d_i, over d (Cochran, Sampling Techniques,
6.3); items that both models miss or both know add nothing. Intervals are normal; with under some 30 items that change they
are too narrow, so ask for hundreds.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, ClassVar, Final

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tailcut.accuracy import ModelAnswers, ZeroShot, change
from tailcut.bench.checks import Case, Positive, Share, Subject
from tailcut.bench.checks._judging import flag, interval, missing
from tailcut.bench.checks._package import made_from
from tailcut.bench.checks._seeded import seeded_answers, seeded_result
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.manifest import read_manifest
from tailcut.results import Check, Ratio

PER_ENGINE: Final = False
_METRIC: Final = "acc"
_WHY: Final = "no answers were given: ask with `tailcut zero-shot` and pass its file with --tasks"
Bits = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    __pydantic_config__: ClassVar = FORBID_EXTRA
    min_task_recovery: Annotated[
        Positive | None, Field(description="Mean task accuracy over dense (0.98: 98 % are left), at least.")
    ] = None
    max_task_drop: Annotated[
        Share | None, Field(description="Accuracy lost on any one task (0.02: two points), at most.")
    ] = None


def check(subject: Subject, limits: Limits) -> tuple[Check, ...]:
    wanted = {"task recovery": limits.min_task_recovery, "accuracy lost on tasks": limits.max_task_drop}
    stated = {name: limit for name, limit in wanted.items() if limit is not None}
    if not stated:
        return ()
    if subject.tasks is None:
        return tuple(missing(name, limit, _WHY) for name, limit in stated.items())
    try:
        dense, sparse = _pair(subject, subject.tasks)
        found = (
            [_recovery(dense, sparse, limits.min_task_recovery, subject.confidence)] if limits.min_task_recovery else []
        )
        if limits.max_task_drop is not None:
            found += [_drop(task, dense, sparse, limits.max_task_drop, subject.confidence) for task in dense.right]
    except InputError as error:
        return (flag("task recovery", good=False, sentence=f"task recovery cannot be judged: {error}"),)
    return tuple(found)


def _pair(subject: Subject, answers: ZeroShot) -> tuple[ModelAnswers, ModelAnswers]:
    """Dense and sparse answers: of the models that the packages were exported from, where packages are given."""
    if len(answers.models) < 2:
        raise InputError("the answers are of one model, two are compared: ask the dense and the sparse one together")
    dense, rest = answers.models[0], answers.models[1:]
    if subject.dense is not None and made_from(read_manifest(subject.dense)) != dense.fingerprint:
        raise InputError(f"{dense.name}, asked as the dense model, is not what {subject.dense.name} was exported from")
    if subject.sparse is not None:
        source = made_from(read_manifest(subject.sparse))
        rest = tuple(model for model in rest if model.fingerprint == source)
        if not rest:
            raise InputError(f"no model that was asked is what {subject.sparse.name} was exported from")
    elif len(rest) > 1:
        raise InputError(f"{len(rest)} sparse models were asked; say which is released with --sparse PACKAGE")
    if {task: len(_bits(dense, task)) for task in dense.right} != {
        task: len(_bits(rest[0], task)) for task in rest[0].right
    }:
        raise InputError(f"{dense.name} and {rest[0].name} were not asked the same items")
    return dense, rest[0]


def _recovery(dense: ModelAnswers, sparse: ModelAnswers, limit: float, confidence: float) -> Check:
    name = "task recovery"
    pairs = [(_bits(dense, task), _bits(sparse, task)) for task in dense.right]
    base = float(np.mean([one.mean() for one, _ in pairs])) if pairs else 0.0
    if base <= 0:
        raise InputError("the dense model answers nothing right")
    value = float(np.mean([other.mean() for _, other in pairs])) / base
    errors = [(other - value * one).std(ddof=1) / np.sqrt(len(one)) for one, other in pairs if len(one) > 1]
    if len(errors) < len(pairs):
        raise InputError("a task has a single item, which has no standard error")
    error = float(np.sqrt(np.square(errors).sum())) / len(pairs) / base
    return interval(name, _normal(value, error, confidence), limit, at_least=True, confidence=confidence)


def _drop(task: str, dense: ModelAnswers, sparse: ModelAnswers, limit: float, confidence: float) -> Check:
    found = change(dense.right[task][_METRIC], sparse.right[task][_METRIC])
    lost = _normal(-found.value, found.error, confidence)
    return interval(f"accuracy lost on {task}", lost, limit, at_least=False, confidence=confidence)


def _normal(value: float, error: float, confidence: float) -> Ratio:
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Ratio(value, value - reach, value + reach, confidence)


def _bits(model: ModelAnswers, task: str) -> Bits:
    """1 where an item was right, else 0, float64 [items]."""
    right = model.right.get(task, {}).get(_METRIC, "")
    if not right or set(right) - {"0", "1"}:
        raise InputError(f"{model.name} has no answers to task {task} by {_METRIC}")
    return np.frombuffer(right.encode(), np.uint8).astype(np.float64) - ord("0")


def cases(folder: Path) -> tuple[Case, ...]:
    result = seeded_result(speedup=2.0)
    worse, good, edge = (Subject(result, tasks=seeded_answers(lost)) for lost in (0.2, 0.01, 0.05))
    recovery, drop = {"min_task_recovery": 0.93}, {"max_task_drop": 0.05}  # dense: 70 % of 1000 items, twice
    return (
        Case("a model that lost 20 points of 70 fails, 93 % must be left", worse, recovery, "fail"),
        Case("a model that lost 1 point passes", good, recovery, "pass"),
        Case("a model that lost 5 points is inconclusive", edge, recovery, "inconclusive"),
        Case("a task that lost 20 points fails, 5 are allowed", worse, drop, "fail"),
        Case("a task that lost 1 point passes", good, drop, "pass"),
        Case("a task that lost 5 points is inconclusive", edge, drop, "inconclusive"),
    )
