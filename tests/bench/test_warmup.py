"""Warm-up is found where it is, and noise is not taken for it."""

import numpy as np
import pytest

from tailcut.bench.warmup import settled, warming_steps


@pytest.mark.parametrize(
    ("medians", "over"),
    [
        ([10.0], False),
        ([10.0, 10.0], False),  # two visits show nothing: the second may be the last of the warming
        ([10.0, 8.0, 7.9], True),
        ([10.0, 8.0, 7.0], False),
        ([12.0, 10.0, 8.0, 7.0, 7.0], True),
        ([8.0, 12.0, 8.1], True),  # a slow visit in between is noise
        ([8.0, 8.0, 7.9, 9.0], True),
    ],
)
def test_a_side_is_warm_when_it_gets_no_faster(medians: list[float], over: bool) -> None:
    assert settled(medians) is over


def test_slow_first_steps_are_counted() -> None:
    rng = np.random.default_rng(0)
    visits = np.exp(rng.normal(0, 0.01, (4, 16)))
    visits[:, :3] *= [2.0, 1.5, 1.2]
    assert warming_steps(visits.tolist()) == 3


def test_spikes_are_no_warming() -> None:
    visits = np.ones((3, 16))
    visits[1, 0] = 5.0  # one visit of three
    visits[:, 4] = 3.0  # all of them, after steps that were not slow
    assert warming_steps(visits.tolist()) == 0


def test_only_the_last_visits_count_and_at_most_half_of_each() -> None:
    cold = [[9.0] * 16] * 2  # constant, but not a profile that matters any more
    assert warming_steps([*cold, [3.0, 1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 1.0]]) == 1
    assert warming_steps([[8.0, 8.0, 8.0, 1.0]] * 3) == 2  # the second half is what the first is held to
    assert warming_steps([[8.0, 4.0, 1.0, 1.0]] * 3) == 2
    assert warming_steps([[5.0]] * 3) == 0
