"""Blocks of two open workers: dense, sparse, sparse, dense and the other way round in turn, a sentinel reading after each visit.

A drift of the machine that is linear over a block cancels. What happens between two blocks (the report, the count of others'
load) slows the first visit of the next where somebody else wants the CPU; in turn, it is either side's (docs/experiments.md). Only one worker computes at any time; the other is stopped
by a signal, so that threads which spin after their work disturb nobody. After each switch some steps are discarded,
because the other side and the sentinel have just evicted the caches; how many is found before the first block.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from tailcut.bench.engines import Phase
from tailcut.bench.load import Lately, OthersLoad
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.sentinel import SEEN_SECONDS, Limits, Reading, Watch, disturbed, limits
from tailcut.bench.stats import median_ratio
from tailcut.bench.stopping import decided, look_confidence
from tailcut.bench.warmup import MOST_STEPS, MOST_VISITS, settled, warming_steps
from tailcut.bench.worker import Worker, WorkerError
from tailcut.progress import Reporter
from tailcut.results import Blocks, Discarded, Procedure, Ratio, Sentinel, Workload

Role = Literal["dense", "sparse"]
ROLES: tuple[Role, Role] = ("dense", "sparse")
Tokens = npt.NDArray[np.int64]
_ENOUGH: Final = 4  # undisturbed blocks; with fewer, and fewer than half, the machine is too loud to discard any
_ATTEMPTS: Final = 2  # blocks that are measured at most, for each that is wanted


@dataclass(frozen=True, slots=True)
class Block:
    """Two visits of each side; `reason` says why it was disturbed."""

    ms: dict[Role, tuple[float, ...]]
    others: dict[Role, float]  # share of the CPUs, the worse of the two visits
    readings: tuple[Reading, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Timed:
    """The blocks that count, and how they came about."""

    blocks: tuple[Block, ...]
    procedure: Procedure

    def ms(self, role: Role) -> Blocks:
        return tuple(block.ms[role] for block in self.blocks)

    def others(self, role: Role) -> tuple[float, ...]:
        return tuple(block.others[role] for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Turns:
    """Two open workers and what they are asked in turn. `tokens` int64 [batch, context]."""

    name: str
    phase: Phase
    workload: Workload
    tokens: Tokens
    workers: dict[Role, Worker]
    report: Reporter

    def run(self) -> Timed:
        """Blocks until there are enough of them."""
        level = self._look_confidence()  # takes a second the first time: not between blocks
        with Watch(self.workload.threads) as watch:
            settling, warmup = self._settle() if self.phase == "decode" else (0, 1)
            calibration = watch.calibrate()
            allowed, began = limits(calibration), time.monotonic()
            blocks: list[Block] = []
            ended, reading, lately = "", watch.read(), Lately(SEEN_SECONDS)
            while not ended:
                blocks.append(self._block(watch, lately, reading, order(len(blocks)), warmup, allowed))
                reading = blocks[-1].readings[-1]
                ended = self._ended(blocks, time.monotonic() - began)
                self._tell(blocks)
        loud = too_loud([bool(block.reason) for block in blocks])
        procedure = Procedure(
            phase=self.phase,
            cpus=tuple(pinned_cpus(self.workload.threads)),
            settling_visits=settling,
            warmup_steps=warmup,
            measured_blocks=len(blocks),
            discarded=() if loud else _discarded(blocks),
            loud=loud,
            ended=ended,
            seconds=time.monotonic() - began,
            look_confidence=level,
            sentinel=_sentinel(allowed, calibration, blocks),
        )
        return Timed(tuple(block for block in blocks if loud or not block.reason), procedure)

    def _block(
        self, watch: Watch, lately: Lately, reading: Reading, roles: Sequence[Role], warmup: int, allowed: Limits
    ) -> Block:
        """Four visits with a reading after each; `reading` was taken before the first."""
        load = OthersLoad([worker.pid for worker in self.workers.values()])
        ms: dict[Role, tuple[float, ...]] = dict.fromkeys(ROLES, ())
        worst: dict[Role, float] = dict.fromkeys(ROLES, 0.0)
        readings, shares, seconds = [reading], list[float](), list[float]()
        for role in roles:
            load.start()
            ms[role] += tuple(self._visit(role, self.workload.steps_per_visit, warmup))
            shares.append(load.share())
            seconds.append(load.seconds())
            worst[role] = max(worst[role], shares[-1])
            readings.append(watch.read())
        return Block(ms, worst, tuple(readings), disturbed(readings, *lately.add(shares, seconds), allowed))

    def _settle(self) -> tuple[int, int]:
        """Turns of both sides until neither gets faster: how many, and the steps that are slow after a switch."""
        room = self.workload.context - 1
        visits: dict[Role, list[list[float]]] = {role: [] for role in ROLES}
        for _ in range(MOST_VISITS):
            for role in ROLES:
                visits[role].append(self._visit(role, min(2 * MOST_STEPS, room), 0))
            if all(settled([float(np.median(times)) for times in visits[role]]) for role in ROLES):
                break
        slow = max(warming_steps(visits[role]) for role in ROLES)
        warmup = min(max(self.workload.warmup_steps, slow), room - self.workload.steps_per_visit)
        return len(visits["dense"]), warmup

    def _visit(self, role: Role, steps: int, warmup: int) -> list[float]:
        """One visit's samples in ms."""
        worker, work = self.workers[role], self.workload
        if self.phase == "prefill":
            prompt = {"tokens": np.ascontiguousarray(self.tokens[:, : work.prompt_tokens])}
            _, arrays = worker.ask("prefill", prompt, repeats=1, warmup=warmup)
        else:
            settings = {"steps": steps, "warmup": warmup, "context": work.context, "seed": work.seed}
            _, arrays = worker.ask("decode", {"tokens": self.tokens}, **settings)
        worker.rest()
        times = np.asarray(arrays["ms"], np.float64)
        if times.size == 0 or not np.all(np.isfinite(times) & (times > 0)):
            raise WorkerError(f"engine {worker.name} returned no usable {self.phase} times")
        return [float(value) for value in times]

    @property
    def _wanted(self) -> int:
        """Undisturbed blocks at most."""
        if self.phase == "prefill":
            return self.workload.prefill_block_count
        return self.workload.stopping.max_blocks if self.workload.stopping else self.workload.blocks

    def _look_confidence(self) -> float:
        stopping, confidence = self.workload.stopping, self.workload.confidence
        if stopping is None or self.phase == "prefill":
            return confidence
        return look_confidence(confidence, stopping.min_blocks, stopping.max_blocks)

    def _ended(self, blocks: Sequence[Block], seconds: float) -> str:
        """Why `blocks` are enough after so many seconds, "" if they are not."""
        kept = [block for block in blocks if not block.reason]
        stopping = self.workload.stopping if self.phase == "decode" else None
        # a disturbed block gives nothing new to look at
        new = stopping and len(kept) >= stopping.min_blocks and not blocks[-1].reason
        if stopping and new and (reason := decided(stopping, self._ratio(kept))):
            return reason
        if len(kept) == self._wanted:
            return f"{self._wanted} blocks are measured"
        if len(blocks) == _ATTEMPTS * self._wanted:
            return f"{len(blocks)} blocks are measured, and {len(blocks) - len(kept)} of them were disturbed"
        if stopping and stopping.minutes and seconds * (1 + 1 / len(blocks)) > 60 * stopping.minutes:
            return f"the next block would go beyond {stopping.minutes:g} minutes"
        return ""

    def _ratio(self, blocks: Sequence[Block]) -> Ratio:
        dense, sparse = ([block.ms[role] for block in blocks] for role in ROLES)
        work = self.workload
        return median_ratio(dense, sparse, confidence=work.confidence, look=self._look_confidence(), seed=work.seed)

    def _tell(self, blocks: Sequence[Block]) -> None:
        medians = [float(np.median(blocks[-1].ms[role])) for role in ROLES]
        bad = sum(bool(block.reason) for block in blocks)
        note = f"{self.phase}: dense {medians[0]:.2f} ms, sparse {medians[1]:.2f} ms"
        note += f", {bad} of {len(blocks)} blocks disturbed" if bad else ""
        self.report(f"bench {self.name}", min(len(blocks) - bad, self._wanted), self._wanted, note)


def order(block: int) -> tuple[Role, ...]:
    """The visits of one block: ABBA, BAAB, ABBA, ..."""
    first, second = ROLES if block % 2 == 0 else ROLES[::-1]
    return first, second, second, first


def too_loud(disturbed_blocks: Sequence[bool]) -> bool:
    """Whether so few blocks were undisturbed that leaving the others out would leave nothing to judge."""
    kept = len(disturbed_blocks) - sum(disturbed_blocks)
    return kept < _ENOUGH and 2 * kept < len(disturbed_blocks)


def _discarded(blocks: Sequence[Block]) -> tuple[Discarded, ...]:
    listed = [(place, block) for place, block in enumerate(blocks) if block.reason]
    return tuple(Discarded(place, block.reason, block.ms["dense"], block.ms["sparse"]) for place, block in listed)


def _sentinel(allowed: Limits, calibration: Sequence[Reading], blocks: Sequence[Block]) -> Sentinel:
    """All readings, to the microsecond."""
    return Sentinel(
        compute_limit_ms=round(allowed.compute, 3),
        memory_limit_ms=round(allowed.memory, 3),
        calibration_compute_ms=tuple(round(reading.compute, 3) for reading in calibration),
        calibration_memory_ms=tuple(round(reading.memory, 3) for reading in calibration),
        compute_ms=tuple(tuple(round(item.compute, 3) for item in block.readings) for block in blocks),
        memory_ms=tuple(tuple(round(item.memory, 3) for item in block.readings) for block in blocks),
    )
