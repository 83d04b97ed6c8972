"""The sentinel: what it reads, where its limits lie, which blocks it calls disturbed, and that it prefers no side."""

import os

import numpy as np
import pytest

from tailcut.bench.load import Lately
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.sentinel import SEEN_SECONDS, Limits, Reading, Watch, disturbed, limits

QUIET = (Reading(1.0, 2.0),) * 5
ALLOWED = Limits(1.5, 3.0)


def test_a_watch_reads_both_parts_on_the_engines_cpus() -> None:
    before = os.sched_getaffinity(0)
    with Watch(len(pinned_cpus(2))) as watch:
        readings = watch.calibrate()
        seen = {frozenset(os.sched_getaffinity(thread.native_id or 0)) for thread in watch._pool._threads}
    assert all(reading.compute > 0 and reading.memory > 0 for reading in readings)
    assert seen == {frozenset({cpu}) for cpu in pinned_cpus(2)}
    assert os.sched_getaffinity(0) == before


def test_limits_come_from_the_quiet_half() -> None:
    calibration = [Reading(1.0, 2.0)] * 13 + [Reading(40.0, 30.0)] * 12
    assert limits(calibration) == Limits(1.5, 3.0)


@pytest.mark.parametrize(
    ("reading", "others", "visited", "why"),
    [
        (Reading(1.4, 2.9), 0.0, 1.0, ""),
        (Reading(1.6, 2.0), 0.0, 1.0, "computation took 1.6 ms"),
        (Reading(1.0, 3.1), 0.0, 1.0, "read took 3.1 ms"),
        (Reading(1.0, 2.0), 0.2, 1.0, "others used 20%"),
        (Reading(1.0, 2.0), 0.05, 1.0, ""),
        (Reading(1.0, 2.0), 0.9, 0.1, ""),  # ticks of 10 ms say nothing about a tenth of a second
    ],
)
def test_one_bad_reading_or_others_at_work_disturb_a_block(
    reading: Reading, others: float, visited: float, why: str
) -> None:
    said = disturbed([*QUIET[:2], reading, *QUIET[3:]], others, visited, ALLOWED)
    assert why in said
    assert bool(said) == bool(why)


def test_discarding_by_readings_does_not_move_the_ratio() -> None:
    """Bursts of two visits that slow both sides; sparse visits are half as long, so they meet fewer of them.

    With every disturbed block gone the ratio is the undisturbed 2; with all of them it is not.
    """
    rng = np.random.default_rng(7)
    kept, every = [], []
    for _ in range(4000):
        times = np.array([2.0, 1.0, 1.0, 2.0]) * np.exp(rng.normal(0, 0.02, 4))
        readings = [Reading(1.0, 2.0)] * 5
        for visit in range(4):
            if rng.random() < 0.05 * times[visit]:  # a burst finds a long visit more easily
                times[visit] *= 1.5
                readings[visit] = readings[visit + 1] = Reading(9.0, 9.0)
        ratio = np.log((times[0] + times[3]) / (times[1] + times[2]))
        every.append(ratio)
        if not disturbed(readings, 0.0, 0.1, ALLOWED):
            kept.append(ratio)
    assert 1000 < len(kept) < 3900
    # 2 % noise a visit: the mean of some 3000 kept blocks is known within 0.02 * sqrt(2) / sqrt(3000) = 0.0004
    assert np.mean(kept) == pytest.approx(np.log(2.0), abs=0.0015)
    assert np.mean(every) > np.log(2.0) + 0.005


def test_short_blocks_are_judged_together() -> None:
    """Somebody who uses half of the CPUs through ten blocks of 0.1 s is seen from the fourth on, and forgotten as soon."""
    lately = Lately(SEEN_SECONDS)
    busy = [disturbed(QUIET, *lately.add((0.5, 0.5, 0.5, 0.5), (0.025,) * 4), ALLOWED) for _ in range(10)]
    assert [bool(reason) for reason in busy] == [False] * 3 + [True] * 7
    quiet = [disturbed(QUIET, *lately.add((0.0,) * 4, (0.025,) * 4), ALLOWED) for _ in range(6)]
    assert [bool(reason) for reason in quiet] == [True] * 3 + [False] * 3  # 12.5 % in the third, none in the fourth


def test_a_long_block_stands_for_itself() -> None:
    lately = Lately(SEEN_SECONDS)
    lately.add((0.9, 0.9), (5.0, 5.0))
    share, seconds = lately.add((0.0, 0.1), (0.3, 0.1))
    assert (share, seconds) == (pytest.approx(0.025), pytest.approx(0.4))
