"""Turns of two workers: stopping rules on a live session, disturbed blocks, resting, warm-up, what the procedure says."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.bench.sentinel import Reading
from tailcut.bench.turns import Timed, Turns, too_loud
from tailcut.bench.worker import Launch, Worker
from tailcut.progress import silent
from tailcut.results import Stopping, Workload

WORK = Workload(prompt_tokens=4, new_tokens=16, context=32, threads=1, blocks=6, prefill_blocks=2)
LOUD, QUIET = Reading(9.0, 9.0), Reading(1.0, 2.0)
Run = Callable[..., Timed]


@pytest.fixture
def run(launch: Launch, quiet: list[Reading]) -> Iterator[Run]:
    """run(workload, dense=settings, sparse=settings) -> what the turns gave."""
    with ExitStack() as stack:

        def turns(work: Workload, phase: Any = "decode", **settings: dict[str, Any]) -> Timed:
            workers: dict[Any, Worker] = {}
            for role in ("dense", "sparse"):
                workers[role] = stack.enter_context(Worker(launch))
                workers[role].ask("open", **{"ms": 10.0 if role == "dense" else 5.0} | settings.get(role, {}))
            tokens = np.zeros((1, work.context), np.int64)
            return Turns("fake", phase, work, tokens, workers, silent).run()

        yield turns


def test_a_fixed_number_of_blocks(run: Run) -> None:
    timed = run(WORK)
    procedure = timed.procedure
    assert (procedure.measured_blocks, procedure.discarded, procedure.loud) == (6, (), False)
    assert procedure.ended == "6 blocks are measured"
    assert procedure.look_confidence == 0.95
    assert len(procedure.cpus) == 1
    assert [len(readings) for readings in procedure.sentinel.compute_ms] == [5] * 6
    assert procedure.sentinel.memory_limit_ms == 3.0


def test_a_clear_speedup_ends_early_and_a_doubtful_one_does_not(run: Run) -> None:
    clear = run(replace(WORK, stopping=Stopping(at_least=1.5)))
    assert len(clear.blocks) == 4  # 2 % noise a step: 2x is clear of 1.5x at the first look
    assert "clear of 1.5" in clear.procedure.ended
    assert clear.procedure.look_confidence > 0.99
    doubtful = run(replace(WORK, stopping=Stopping(at_least=2.0, max_blocks=7)))
    assert len(doubtful.blocks) == 7
    assert doubtful.procedure.ended == "7 blocks are measured"


def test_a_narrow_interval_ends(run: Run) -> None:
    timed = run(replace(WORK, stopping=Stopping(precision=0.2)))
    assert len(timed.blocks) == 4
    assert "narrow" in timed.procedure.ended


def test_no_time_ends_after_one_block(run: Run) -> None:
    timed = run(replace(WORK, stopping=Stopping(minutes=1e-6)))
    assert len(timed.blocks) == 1
    assert "beyond 1e-06 minutes" in timed.procedure.ended
    assert not timed.procedure.loud


def test_disturbed_blocks_are_replaced_and_kept_apart(run: Run, quiet: list[Reading]) -> None:
    # before the first block, then four a block: the fourth reading of block 1 is loud, and the last of block 3,
    # which is the first of block 4
    quiet += [QUIET, *[QUIET] * 4, QUIET, QUIET, LOUD, QUIET, *[QUIET] * 4, QUIET, QUIET, QUIET, LOUD]
    timed = run(WORK)
    procedure = timed.procedure
    assert [item.block for item in procedure.discarded] == [1, 3, 4]
    assert (len(timed.blocks), procedure.measured_blocks) == (6, 9)
    assert "9.0 ms" in procedure.discarded[0].reason
    assert [len(item.dense_ms) for item in procedure.discarded] == [16] * 3
    assert not set(procedure.discarded[0].dense_ms) & {value for block in timed.ms("dense") for value in block}


def test_a_loud_machine_discards_nothing_and_says_so(run: Run, quiet: list[Reading]) -> None:
    quiet += [LOUD] * 1000
    timed = run(WORK)
    assert timed.procedure.loud
    assert timed.procedure.discarded == ()
    assert (len(timed.blocks), timed.procedure.measured_blocks) == (12, 12)
    assert timed.procedure.ended == "12 blocks are measured, and 12 of them were disturbed"


@pytest.mark.parametrize(
    ("good", "bad", "loud"), [(0, 0, False), (2, 0, False), (3, 4, True), (3, 3, False), (4, 100, False), (0, 1, True)]
)
def test_loud_is_when_too_little_is_left(good: int, bad: int, loud: bool) -> None:
    assert too_loud([False] * good + [True] * bad) is loud


def test_the_worker_that_waits_is_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    ask = Worker.ask
    alive: list[Worker] = []

    def spy(worker: Worker, command: str, *arguments: Any, **body: Any) -> Any:
        alive.append(worker)
        if command == "decode" and body["warmup"]:
            other = next(item for item in alive if item is not worker)
            until = time.monotonic() + 5.0  # a signal takes a moment to show
            while state(other.pid) != "T" and time.monotonic() < until:
                time.sleep(0.001)
            seen.append(state(other.pid))
        return ask(worker, command, *arguments, **body)

    monkeypatch.setattr(Worker, "ask", spy)
    run(WORK)
    assert seen == ["T"] * 24


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_slow_first_steps_are_found_and_left_out(run: Run) -> None:
    timed = run(WORK, sparse={"warming": [3.0, 2.0, 1.5, 1.2]})
    assert timed.procedure.warmup_steps == 4
    assert 3 <= timed.procedure.settling_visits <= 8
    assert max(max(block) for block in timed.ms("sparse")) < 6.0  # 5 ms and 2 % noise


def test_prefill_takes_its_own_number_of_blocks(run: Run) -> None:
    timed = run(replace(WORK, stopping=Stopping(at_least=1.5)), phase="prefill")
    assert len(timed.blocks) == 2
    assert timed.procedure.phase == "prefill"
    assert timed.procedure.look_confidence == 0.95


def test_a_stopped_worker_can_be_closed_and_killed(launch: Launch) -> None:
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        worker.rest()
        assert worker.close() > 0
    with Worker(launch) as worker:
        worker.ask("open", **launch.settings)
        worker.rest()
