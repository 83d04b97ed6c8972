"""Accuracies, paired changes and means against their definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut.accuracy import ModelAnswers, change, estimate, rows_of
from tailcut.errors import InputError

ANSWERS = st.integers(2, 60).flatmap(
    lambda n: st.tuples(st.text("01", min_size=n, max_size=n), st.text("01", min_size=n, max_size=n))
)


@given(ANSWERS)
def test_the_change_is_mcnemars(pair: tuple[str, str]) -> None:
    """From the two discordant counts b and c alone: (b + c - (b - c)^2 / n) / (n (n - 1)) is the variance."""
    dense, sparse = pair
    n = len(dense)
    b = sum(one == "0" and two == "1" for one, two in zip(dense, sparse, strict=True))
    c = sum(one == "1" and two == "0" for one, two in zip(dense, sparse, strict=True))
    got = change(dense, sparse)
    assert (got.gained, got.lost) == (b, c)
    assert got.value == pytest.approx((b - c) / n)
    assert got.value == pytest.approx(estimate(sparse).value - estimate(dense).value)
    assert got.error == pytest.approx(np.sqrt((b + c - (b - c) ** 2 / n) / (n * (n - 1))), abs=1e-12)


def test_the_standard_error_is_lm_evals() -> None:
    """sample standard deviation over sqrt(n): 3 right of 4 give sqrt(0.25 / 4)."""
    got = estimate("1101")
    assert (got.value, got.error) == (0.75, pytest.approx(0.25))
    assert estimate("1").error == 0.0


def test_same_answers_change_nothing_and_surely() -> None:
    assert change("1100", "1100") == change("0" * 9, "0" * 9)


def test_the_error_covers_what_other_items_would_give() -> None:
    """Resampling items: the spread of the change over bootstrap samples is its standard error."""
    rng = np.random.default_rng(0)
    dense = rng.integers(0, 2, 400)
    sparse = np.where(rng.random(400) < 0.2, 1 - dense, dense)
    picks = rng.integers(0, 400, (4000, 400))
    spread = (sparse - dense)[picks].mean(1).std()
    got = change("".join(map(str, dense)), "".join(map(str, sparse)))
    # the deviation of 4000 draws has a relative error of 1/sqrt(8000) = 1.1 %; five of them
    assert got.error == pytest.approx(spread, rel=0.056)


def models() -> tuple[ModelAnswers, ...]:
    dense = {"rte": {"acc": "1110"}, "arc_easy": {"acc": "11", "acc_norm": "01"}}
    cut = {"rte": {"acc": "0110"}, "arc_easy": {"acc": "10", "acc_norm": "11"}}
    return ModelAnswers("dense", "a", None, dense), ModelAnswers("cut", "b", 0.5, cut)


def test_rows_pair_each_model_with_the_first() -> None:
    rows = {(row.model, row.task, row.metric): row for row in rows_of(models())}
    wanted = {("rte", "acc"), ("arc_easy", "acc"), ("arc_easy", "acc_norm"), ("mean", "acc")}
    assert set(rows) == {(name, *rest) for name, rest in itertools.product(("dense", "cut"), wanted)}
    assert all(row.change is None and row.recovery is None for key, row in rows.items() if key[0] == "dense")
    got = rows["cut", "rte", "acc"]
    assert got.change == change("1110", "0110")
    assert got.recovery == pytest.approx(0.5 / 0.75)


def test_the_mean_weighs_tasks_the_same_and_takes_acc() -> None:
    rows = {(row.model, row.task): row for row in rows_of(models()) if row.task == "mean"}
    mean = rows["cut", "mean"]
    assert rows["dense", "mean"].accuracy.value == pytest.approx((0.75 + 1.0) / 2)
    assert mean.accuracy.value == pytest.approx((0.5 + 0.5) / 2)
    assert mean.items == 6
    assert mean.change is not None
    assert mean.change.value == pytest.approx(-0.375)
    errors = change("1110", "0110").error, change("11", "10").error
    assert mean.change.error == pytest.approx(np.hypot(*errors) / 2)
    assert mean.recovery == pytest.approx(0.5 / 0.875)


def test_a_dense_model_that_knows_nothing_gives_no_recovery() -> None:
    pair = ModelAnswers("d", "", None, {"rte": {"acc": "00"}}), ModelAnswers("s", "", None, {"rte": {"acc": "01"}})
    assert [row.recovery for row in rows_of(pair)] == [None] * 4


@pytest.mark.parametrize(("dense", "sparse"), [("10", "1"), ("", ""), ("1x", "10")])
def test_answers_that_cannot_be_paired_are_refused(dense: str, sparse: str) -> None:
    with pytest.raises(InputError):
        change(dense, sparse)
