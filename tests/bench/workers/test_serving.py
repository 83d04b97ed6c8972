"""The loop under load, on a clock of its own: who waits for whom, what is counted, and when."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tailcut.bench.workers.serving import Clock, Loop

PROMPT_S, STEP_S = 10.0, 1.0


class FakeClock(Clock):
    """Seconds that pass only when somebody works or sleeps; standing still between visits is the real clock's."""

    def __init__(self) -> None:
        self.time = 0.0
        self.away = False

    def now(self) -> float:
        return self.time

    def leave(self) -> None:
        self.away = True

    def come_back(self) -> None:
        self.away = False


class FakeSequences:
    """A prompt takes 10 s, a step 1 s, whoever is in it; the next token says whose it is."""

    sharing = "fake"

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.rows: list[int] = []
        self.joined = 0
        self.most = 0

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, prompt: Any) -> Any:
        self.clock.time += PROMPT_S
        self.rows.append(self.joined)
        self.joined += 1
        self.most = max(self.most, len(self.rows))
        return self._logits(self.rows[-1])

    def step(self, tokens: Any) -> Any:
        assert list(tokens) == [row % 50 for row in self.rows]  # everyone is fed its own token
        self.clock.time += STEP_S
        return np.stack([self._logits(row) for row in self.rows])

    def leave(self, number: int) -> None:
        self.rows[number] = self.rows[-1]
        self.rows.pop()

    def warm(self, prompt: Any) -> None:
        self.warmed = True

    def _logits(self, row: int) -> Any:
        return np.eye(50, dtype=np.float32)[row % 50]


Make = Callable[..., tuple[Loop, FakeSequences, FakeClock]]


@pytest.fixture
def make() -> Make:
    def built(streams: int, new: int, **more: Any) -> tuple[Loop, FakeSequences, FakeClock]:
        clock = FakeClock()
        fake = FakeSequences(clock)

        def sleep(seconds: float) -> None:
            clock.time += seconds + 1e-9

        loop = Loop(
            fake, streams=streams, prompt_tokens=3, new_tokens=new, vocabulary=50, clock=clock, sleep=sleep, **more
        )
        return loop, fake, clock

    return built


def test_one_user(make: Make) -> None:
    loop, _, _ = make(1, 5)
    loop.run(1)
    seen = loop.run(2)
    assert seen.ttft == [PROMPT_S] * 2
    assert seen.gaps == [STEP_S] * 8
    assert (seen.tokens, seen.ended, seen.seconds) == (10, 2, 2 * (PROMPT_S + 4 * STEP_S))


def test_a_prompt_holds_up_everybody_who_runs(make: Make) -> None:
    """Users are spread over a request: one prompt now and then, not all at once."""
    loop, fake, _ = make(2, 8)
    loop.run(2)
    seen = loop.run(2)
    assert fake.most == 2
    assert seen.ended == 2
    assert len(seen.ttft) == 2
    assert seen.ttft == [PROMPT_S, PROMPT_S]  # nobody was in front of them
    assert sorted(set(seen.gaps)) == [STEP_S, PROMPT_S + STEP_S]
    # each prompt holds up the one who runs, once
    assert seen.gaps.count(PROMPT_S + STEP_S) == 2
    assert seen.tokens == len(seen.ttft) + len(seen.gaps)


def test_visits_add_up_to_one_run(make: Make) -> None:
    """Where a run is cut into visits changes nothing of what is seen."""
    whole, _, _ = make(3, 7)
    cut, _, _ = make(3, 7)
    long = whole.run(12)
    parts = [cut.run(4) for _ in range(3)]
    assert [gap for part in parts for gap in part.gaps] == long.gaps
    assert [first for part in parts for first in part.ttft] == long.ttft
    assert sum(part.tokens for part in parts) == long.tokens


def test_one_prompt_between_two_steps(make: Make) -> None:
    loop, _, _ = make(4, 2)  # all four want in at once
    seen = loop.run(1)
    assert len(seen.ttft) == 1
    assert loop.waiting == 4  # three others, and the first one's user again


def test_requests_of_one_token(make: Make) -> None:
    loop, _, _ = make(2, 1)
    seen = loop.run(4)
    assert (seen.tokens, seen.ended, seen.steps, seen.gaps) == (4, 4, 0, [])


def test_open_arrivals_wait_for_a_slot_and_the_wait_counts(make: Make) -> None:
    loop, fake, clock = make(2, 4, rate=10.0, seed=3)  # far more than one request in 13 s
    seen = loop.run(30)
    assert fake.most == 2
    assert seen.ended == 30
    assert loop.waiting > 100
    assert seen.ttft[-1] > 0.5 * clock.time  # the last one waited since its arrival long ago


def test_open_arrivals_leave_gaps_in_which_nothing_runs(make: Make) -> None:
    loop, fake, clock = make(4, 4, rate=0.001, seed=3)
    seen = loop.run(20)
    assert loop.waiting == 0
    assert fake.most <= 2
    # exponential gaps of 1000 s: the mean of 20 is within four standard errors (1000 / sqrt(20))
    assert clock.time == pytest.approx(20 * 1000, abs=20 * 4 * 1000 / 20**0.5)
    assert np.median(seen.ttft) == pytest.approx(PROMPT_S, abs=1e-6)


def test_the_same_seed_gives_the_same_arrivals(make: Make) -> None:
    seen = [make(2, 4, rate=0.05, seed=seed)[0].run(10).ttft for seed in (1, 1, 2)]
    assert seen[0] == seen[1] != seen[2]


def test_the_clock_stands_still_between_visits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tailcut.bench.workers.serving.time.perf_counter", lambda: now[0])
    clock = Clock()
    now[0] = 5.0
    clock.come_back()
    now[0] = 7.0
    assert clock.now() == 2.0
    clock.leave()
    now[0] = 100.0
    clock.come_back()
    now[0] = 101.0
    assert clock.now() == 3.0
