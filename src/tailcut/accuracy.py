"""Multiple-choice accuracy of a dense model and its sparse copies on the same items, and what may be said of it.

The models answer the same items, so the change is a paired one: with d_i in {-1, 0, 1} the change of item i, the mean of
d has the standard error sd(d) / sqrt(n), which is McNemar's test written as an estimate (sd^2 = (gained + lost)/n -
change^2, times n/(n-1)). It is smaller than the two accuracies' own errors together wherever both models miss the same
items. The mean over tasks weighs every task the same, as the pruning papers do; its error takes tasks as independent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error, both as fractions of 1. The error of one item alone is 0."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Change:
    """Sparse less dense accuracy on the same items, and how many items each way make it up."""

    value: float
    error: float
    gained: int  # wrong before, right now
    lost: int


@dataclass(frozen=True, slots=True)
class TaskFile:
    """The items of one task: where they came from and whose prompts they were put in."""

    file: str
    sha256: str
    items: int  # that were asked
    items_in_file: int
    version: str  # of the task's definition in lm-eval


@dataclass(frozen=True, slots=True)
class ModelAnswers:
    """One model. `right[task][metric]` has one character an item in the file's order: 1 where it was right, else 0."""

    name: str
    fingerprint: str  # sha256 of config and weights
    sparsity: float | None  # of the block linears, from the manifest; None: not made by tailcut
    right: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one task by one metric. `change` and `recovery` (sparse over dense) are None for the dense model."""

    model: str
    task: str  # or "mean"
    metric: str
    items: int
    accuracy: Estimate
    change: Change | None = None
    recovery: float | None = None


@dataclass(frozen=True, slots=True)
class ZeroShot:
    """What `tailcut zero-shot` measured: the first model is the dense one. `rows` follows from `models`."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    VISIBLE_TEXT: ClassVar[bool] = True
    tasks: Mapping[str, TaskFile]
    models: tuple[ModelAnswers, ...]
    rows: tuple[Row, ...]
    settings: Mapping[str, str | int | None]  # device, dtype, batch, limit
    versions: Mapping[str, str]


def rows_of(models: tuple[ModelAnswers, ...]) -> tuple[Row, ...]:
    """Every model, task and metric, and each model's mean over the tasks (by `acc`), with the changes to the first model."""
    dense = models[0]
    found: list[Row] = []
    for model in models:
        base = None if model is dense else dense
        rows = [_row(model, task, metric, base) for task, metrics in model.right.items() for metric in sorted(metrics)]
        found += [*rows, _mean(rows)]
    return tuple(found)


def estimate(right: str) -> Estimate:
    """Share of items answered right, with its standard error (sample deviation over sqrt(n), as lm-eval's)."""
    values = _bits(right)
    return Estimate(float(values.mean()), _error(values))


def change(dense: str, sparse: str) -> Change:
    """Sparse less dense accuracy over the same items, with the standard error of the paired difference."""
    if len(dense) != len(sparse):
        raise InputError(f"answers to {len(dense)} and {len(sparse)} items cannot be paired")
    difference = _bits(sparse) - _bits(dense)
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return Change(float(difference.mean()), _error(difference), gained, lost)


def _row(model: ModelAnswers, task: str, metric: str, dense: ModelAnswers | None) -> Row:
    right = model.right[task][metric]
    if dense is None:
        return Row(model.name, task, metric, len(right), estimate(right))
    base = dense.right[task][metric]
    return Row(
        model.name, task, metric, len(right), estimate(right), change(base, right), _ratio(estimate(right), base)
    )


def _ratio(sparse: Estimate, dense: str) -> float | None:
    base = estimate(dense).value
    return sparse.value / base if base > 0 else None


def _mean(rows: list[Row]) -> Row:
    """The unweighted mean over tasks by `acc`; standard errors add in squares."""
    chosen = [row for row in rows if row.metric == "acc"]
    count, first = len(chosen), chosen[0]
    accuracy = Estimate(
        sum(row.accuracy.value for row in chosen) / count, _together([row.accuracy.error for row in chosen])
    )
    items = sum(row.items for row in chosen)
    changes = [row.change for row in chosen if row.change is not None]
    if not changes:
        return Row(first.model, "mean", "acc", items, accuracy)
    value = sum(one.value for one in changes) / count
    error = _together([one.error for one in changes])
    total = Change(value, error, sum(one.gained for one in changes), sum(one.lost for one in changes))
    dense = accuracy.value - value
    return Row(first.model, "mean", "acc", items, accuracy, total, accuracy.value / dense if dense > 0 else None)


def _bits(right: str) -> npt.NDArray[np.float64]:
    if not right or set(right) - {"0", "1"}:
        raise InputError("answers are one character an item, 0 or 1, and at least one")
    return np.frombuffer(right.encode(), np.uint8).astype(np.float64) - ord("0")


def _error(values: npt.NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _together(errors: list[float]) -> float:
    return float(np.sqrt(np.square(errors).sum()) / len(errors))
