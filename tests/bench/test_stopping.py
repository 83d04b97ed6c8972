"""Looking after every block: the error rate holds, and each rule ends what it should."""

import numpy as np
import pytest

from tailcut.bench.stats import student
from tailcut.bench.stopping import decided, look_confidence
from tailcut.errors import InputError
from tailcut.results import Ratio, Stopping


def test_one_look_needs_no_stricter_level() -> None:
    # 50 000 paths: the tail of 5 % is known within 2 % of itself, so the level within 0.001
    assert look_confidence(0.95, 6, 6) == pytest.approx(0.95, abs=0.003)


def test_more_looks_are_stricter() -> None:
    levels = [look_confidence(0.95, 4, last) for last in (4, 8, 16)]
    assert levels == sorted(levels)
    assert look_confidence(0.99, 4, 8) > look_confidence(0.95, 4, 8)


@pytest.mark.parametrize("tail", [200, 3])
def test_intervals_at_all_looks_hold_together(tail: int) -> None:
    """A path of its own, not the paths that made the level: normal blocks, and blocks with heavy tails."""
    rng = np.random.default_rng(11)
    paths, first, last = 4000, 4, 16
    blocks = rng.standard_t(tail, (paths, last))
    reaches = [student(look_confidence(0.95, first, last), count - 1) for count in range(first, last + 1)]
    missed = np.zeros(paths, bool)
    for count, reach in zip(range(first, last + 1), reaches, strict=True):
        seen = blocks[:, :count]
        missed |= np.abs(seen.mean(axis=1)) > reach * seen.std(axis=1, ddof=1) / np.sqrt(count)
    # standard error of 5 % over 4000 paths: 0.35 %; heavy tails make Student's interval wider, not narrower
    assert missed.mean() < 0.05 + 3 * 0.0035
    assert tail < 100 or missed.mean() > 0.03  # and not by being useless


def test_the_same_looks_at_a_plain_level_would_not_hold() -> None:
    """What the stricter level is for."""
    rng = np.random.default_rng(12)
    blocks = rng.standard_normal((2000, 16))
    missed = np.zeros(2000, bool)
    for count in range(4, 17):
        seen = blocks[:, :count]
        missed |= np.abs(seen.mean(axis=1)) > student(0.95, count - 1) * seen.std(axis=1, ddof=1) / np.sqrt(count)
    assert missed.mean() > 0.1


@pytest.mark.parametrize(
    ("stopping", "ratio", "why"),
    [
        (Stopping(at_least=1.5), (1.8, 1.6, 2.0), "clear of 1.5"),
        (Stopping(at_least=1.5), (1.5, 1.5, 1.6), "clear of 1.5"),  # the limit itself is enough
        (Stopping(at_least=1.5), (1.3, 1.2, 1.4), "clear of 1.5"),
        (Stopping(at_least=1.5), (1.45, 1.4, 1.5), ""),  # the gate would not fail it
        (Stopping(at_least=1.5), (1.5, 1.4, 1.6), ""),
        (Stopping(precision=0.05), (2.0, 1.92, 2.08), "4.0%"),
        (Stopping(precision=0.05), (2.0, 1.8, 2.1), ""),
        (Stopping(precision=0.5, at_least=1.5), (1.5, 1.4, 1.6), "narrow"),
        (Stopping(minutes=1.0), (1.5, 1.5, 1.5), ""),
    ],
)
def test_a_rule_ends_the_session_or_not(stopping: Stopping, ratio: tuple[float, float, float], why: str) -> None:
    said = decided(stopping, Ratio(*ratio, 0.95))
    assert why in said
    assert bool(said) == bool(why)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"precision": 0.0},
        {"at_least": -1.0},
        {"minutes": float("inf")},
        {"precision": float("nan")},
        {"precision": 0.02, "min_blocks": 2},
        {"precision": 0.02, "min_blocks": 9, "max_blocks": 8},
        {"precision": 0.02, "max_blocks": 10_000},
    ],
)
def test_a_stopping_rule_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Stopping(**bad)  # type: ignore[arg-type]
