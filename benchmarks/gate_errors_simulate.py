"""Made-up sessions whose true speedup is known, with the noise of real ones: what `gate_errors.py simulate` does.

log(step in ms) = side + level + visit + step + burst. The level moves over the session and hits both sides alike
(autoregressive over visits); `visit` is one side's own (Student, 4 degrees of freedom: heavy tails); steps are correlated
with the step before; some are spikes. The sizes are taken from the raw samples of committed ABBA sessions on the machine
of docs/experiments.md (`measured_noise`). Bursts are what the sentinel is for: another process comes and goes between
visits, slows what runs, and may slow the two sides differently; a reading in a burst shows it with 90 %, and one of two
hundred readings shows a burst that is not there.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from bench_common import robust_deviation  # beside this script

from tailcut import codec
from tailcut.bench.stats import Floats, median_ratio, student
from tailcut.bench.stopping import decided, look_confidence
from tailcut.bench.turns import too_loud
from tailcut.progress import Reporter
from tailcut.results import BenchResult, Blocks, Ratio, Stopping

RESULTS: Final = Path(__file__).with_name("results")
LIMITS: Final = (1.0, 1.03)
FIXED, LEAST, MOST = 8, 4, 16  # blocks: of the fixed protocol, of the adaptive one
CONFIDENCE: Final = 0.95
_STEPS: Final = 8  # a visit
_TAIL: Final = 4  # degrees of freedom of a visit's own noise
_SEEN, _FALSE_ALARM = 0.9, 0.005  # of a reading: in a burst, outside
_TRUTHS: Final = (0.94, 0.97, 1.0, 1.03, 1.06)  # over the limit
BATCH: Final = 100  # sessions that are made and kept together
OUTCOMES: Final = ("pass", "fail", "inconclusive")
_COUNTS: Final = (4, 6, 8, 16)  # blocks of a session whose intervals are checked
_RESAMPLES: Final = 200  # what the bench draws five times as often: its error then moves 5 % instead of 2 %
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Noise:
    """Standard deviations of log times."""

    level: float  # both sides alike
    visit: float  # one side's own
    step: float
    step_memory: float  # correlation of a step with the one before
    spikes: float  # share of the steps
    spike: float  # mean of their log excess
    level_memory: float = 0.7  # correlation of a visit with the one before: blocks then hardly have any, as measured


@dataclass(frozen=True, slots=True)
class Bursts:
    """Another process: share of the visits in it on average, how much it slows each side (log), how long it stays."""

    share: float = 0.0
    dense: float = 0.0
    sparse: float = 0.0
    visits: float = 6.0


SCENES: Final[dict[str, Bursts]] = {
    "no bursts": Bursts(),
    "bursts, both sides alike": Bursts(0.15, 0.5, 0.5),
    "bursts that slow the dense side more": Bursts(0.15, 0.5, 0.25),
}


def measured_noise(files: Iterable[str] = ("cpu_decode.json", "cpu_demo.json")) -> Noise:
    """The sizes as medians over the decode sessions of these files."""
    found = np.asarray(
        [_sizes(*sides) for file in files for sides in _sessions(json.loads((RESULTS / file).read_bytes()))]
    )
    level, visit, step, memory, spikes, spike = np.median(found, axis=0)
    return Noise(*(round(float(value), 4) for value in (level, visit, step, memory, spikes, spike)))


def _sessions(data: dict[str, Any]) -> Iterable[tuple[Floats, Floats]]:
    for item in data.get("sessions") or [data["result"]]:
        result = codec.from_json(BenchResult, json.dumps(item), "a committed result")
        for engine in result.engines:
            if engine.dense and engine.sparse:
                yield np.log(engine.dense.decode_ms), np.log(engine.sparse.decode_ms)


def _sizes(dense: Floats, sparse: Floats) -> tuple[float, ...]:
    """level, visit, step, its memory, spikes and their mean, from log times [blocks, steps] of one session."""
    medians = np.median(dense, axis=1), np.median(sparse, axis=1)
    inside = np.concatenate([side - middle[:, None] for side, middle in zip((dense, sparse), medians, strict=True)])
    step = robust_deviation(inside)  # spikes do not move it
    memory = float(np.mean(inside[:, 1:] * inside[:, :-1]) / np.mean(inside * inside))
    spikes = inside > 3 * step
    level = np.sqrt(max(0.0, float(np.cov(*medians)[0, 1])))
    # what the noise of steps leaves in a median of correlated steps, and then in a difference of two
    left = np.pi / 2 * step * step / dense.shape[1] * (1 + memory) / (1 - memory)
    block = max(0.0, float(np.var(medians[0] - medians[1], ddof=1)) / 2 - left)
    return (
        level,
        np.sqrt(2 * block),
        step,
        memory,
        float(spikes.mean()),
        float(inside[spikes].mean()) if spikes.any() else 0.0,
    )


def session(rng: Rng, noise: Noise, bursts: Bursts, truth: float, blocks: int) -> tuple[Floats, Floats, list[bool]]:
    """ms of dense and sparse [blocks, steps of two visits], and whether the sentinel keeps each block."""
    visits = 4 * blocks
    level = noise.level * _autoregressive(rng, (1, visits), noise.level_memory)[0]
    own = noise.visit * rng.standard_t(_TAIL, visits) / np.sqrt(_TAIL / (_TAIL - 2))
    steps = noise.step * _autoregressive(rng, (visits, _STEPS), noise.step_memory)
    steps += (rng.random(steps.shape) < noise.spikes) * rng.exponential(noise.spike, steps.shape)
    state = _bursts(rng, bursts, visits + 1)  # one a reading: a visit lies between two
    inside = (state[:-1] + state[1:]) / 2
    slowed = np.tile([bursts.dense, bursts.sparse, bursts.sparse, bursts.dense], blocks)
    side = np.tile([np.log(truth), 0.0, 0.0, np.log(truth)], blocks)
    log = (level + own + side + inside * slowed)[:, None] + steps
    each = np.exp(log).reshape(blocks, 4, _STEPS)
    shown = rng.random(visits + 1) < np.where(state > 0, _SEEN, _FALSE_ALARM)
    kept = [not shown[4 * block : 4 * block + 5].any() for block in range(blocks)]
    return np.concatenate([each[:, 0], each[:, 3]], 1), np.concatenate([each[:, 1], each[:, 2]], 1), kept


def _autoregressive(rng: Rng, shape: tuple[int, int], memory: float) -> Floats:
    """Rows [rows, n] of unit variance in which each value remembers the one before."""
    values = rng.standard_normal(shape)
    for column in range(1, shape[1]):
        values[:, column] = memory * values[:, column - 1] + np.sqrt(1 - memory**2) * values[:, column]
    return values


def _bursts(rng: Rng, bursts: Bursts, count: int) -> Floats:
    """Whether somebody else computes, at each reading: 0 or 1."""
    if not bursts.share:
        return np.zeros(count)
    leave = 1 / bursts.visits
    enter = leave * bursts.share / (1 - bursts.share)
    state, found = bool(rng.random() < bursts.share), []
    for draw in rng.random(count):
        state = draw >= leave if state else draw < enter
        found.append(float(state))
    return np.asarray(found)


def outcome(ratio: Ratio, limit: float, *, loud: bool = False) -> str:
    """What the gate makes of an interval."""
    if loud:
        return "inconclusive"
    return "pass" if ratio.low >= limit else "fail" if ratio.high < limit else "inconclusive"


def fixed(dense: Blocks, sparse: Blocks, *, seed: int, resamples: int = 1000) -> Ratio:
    return median_ratio(dense[:FIXED], sparse[:FIXED], confidence=CONFIDENCE, seed=seed, resamples=resamples)


def adaptive(dense: Blocks, sparse: Blocks, limit: float, *, seed: int, resamples: int = 1000) -> tuple[Ratio, int]:
    """The interval at the look that ends the session, and the blocks until then."""
    stopping = Stopping(at_least=limit, min_blocks=LEAST, max_blocks=MOST)
    level = look_confidence(CONFIDENCE, LEAST, MOST)
    count, last = min(LEAST, len(dense)), min(MOST, len(dense))
    while True:
        seen = dense[:count], sparse[:count]
        ratio = median_ratio(*seen, confidence=CONFIDENCE, look=level, seed=seed, resamples=resamples)
        if count == last or decided(stopping, ratio):
            return ratio, count
        count += 1


def verdicts(
    dense: Blocks,
    sparse: Blocks,
    kept: Sequence[bool],
    loud: bool,
    *,
    seed: int,
    limits: Sequence[float] = LIMITS,
    resamples: int = 1000,
    everything: bool = True,
) -> dict[str, Any]:
    """For each protocol and limit: outcome, value, low, high, blocks measured. Blocks in order, disturbed ones too.

    everything: also what the protocols would say if no block were discarded.
    """
    chosen = {"": [place for place, good in enumerate(kept) if good or loud]}
    if everything:
        chosen[", nothing discarded"] = list(range(len(kept)))
    found: dict[str, Any] = {}
    for what, listed in chosen.items():
        sides = tuple(dense[place] for place in listed), tuple(sparse[place] for place in listed)
        silent = loud and not what
        for limit in limits:
            ratio, used = adaptive(*sides, limit, seed=seed, resamples=resamples)
            found[f"adaptive{what} @{limit:g}"] = _verdict(ratio, limit, listed[used - 1] + 1, silent)
        ratio = fixed(*sides, seed=seed, resamples=resamples)
        used = listed[min(FIXED, len(listed)) - 1] + 1
        found |= {f"fixed{what} @{limit:g}": _verdict(ratio, limit, used, silent) for limit in limits}
    return found


def _verdict(ratio: Ratio, limit: float, blocks: int, loud: bool) -> list[Any]:
    values = (round(value, 5) for value in (ratio.value, ratio.low, ratio.high))
    return [outcome(ratio, limit, loud=loud), *values, blocks]


def _ours(dense: Floats, sparse: Floats, seed: int) -> tuple[float, float]:
    ratio = median_ratio(dense.tolist(), sparse.tolist(), confidence=CONFIDENCE, seed=seed, resamples=400)
    return ratio.low, ratio.high


def _percentiles(dense: Floats, sparse: Floats, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(dense), (400, len(dense)))
    drawn = [
        np.median(side[picks[..., None], rng.integers(0, side.shape[1], (*picks.shape, side.shape[1]))], axis=(1, 2))
        for side in (dense, sparse)
    ]
    low, high = np.percentile(drawn[0] / drawn[1], [2.5, 97.5])
    return float(low), float(high)


def _student(dense: Floats, sparse: Floats, seed: int) -> tuple[float, float]:
    logs = np.log(np.median(dense, axis=1) / np.median(sparse, axis=1))
    reach = student(CONFIDENCE, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    return float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))


def _studentised(dense: Floats, sparse: Floats, seed: int) -> tuple[float, float]:
    logs = np.log(np.median(dense, axis=1) / np.median(sparse, axis=1))
    drawn = logs[np.random.default_rng(seed).integers(0, len(logs), (1000, len(logs)))]
    spread = drawn.std(axis=1, ddof=1)
    usual = (drawn.mean(axis=1) - logs.mean())[spread > 0] / spread[spread > 0]
    low, high = np.percentile(usual, [2.5, 97.5]) * logs.std(ddof=1)
    return float(np.exp(logs.mean() - high)), float(np.exp(logs.mean() - low))


INTERVALS: Final[dict[str, Callable[[Floats, Floats, int], tuple[float, float]]]] = {
    "Student's reach on a bootstrap of blocks (in use)": _ours,
    "percentiles of a bootstrap of blocks and of steps in them (before)": _percentiles,
    "Student on the mean of the blocks' log ratios": _student,
    "studentised bootstrap of the same mean": _studentised,
}


def coverage(noise: Noise, blocks: int, batch: int) -> dict[str, list[float]]:
    """For each interval: sessions of a batch in which it holds the true 1, and its log half-widths, each at most 1, summed."""
    rng = np.random.default_rng([blocks, batch])
    found = {name: [0.0, 0.0] for name in INTERVALS}
    for trial in range(BATCH):
        dense, sparse, _ = session(rng, noise, Bursts(), 1.0, blocks)
        for name, interval in INTERVALS.items():
            low, high = interval(dense, sparse, trial)
            found[name][0] += low <= 1.0 <= high
            found[name][1] += min(1.0, float(np.log(high / max(low, 1e-9))) / 2)
    return found


def tally(noise: Noise, scene: str, truth: float, batch: int) -> dict[str, list[float]]:
    """For each protocol: passes, fails, undecided and blocks, summed over a batch of sessions at a limit of 1."""
    rng = np.random.default_rng([round(1000 * truth), list(SCENES).index(scene), batch])
    found: dict[str, list[float]] = {}
    for trial in range(BATCH):
        dense, sparse, kept = session(rng, noise, SCENES[scene], truth, 2 * MOST)
        places = [place for place, good in enumerate(kept) if good][:MOST]
        loud = too_loud([not good for good in kept])
        end = places[-1] + 1 if len(places) == MOST else 2 * MOST
        sides = [tuple(map(tuple, side[:end])) for side in (dense, sparse)]
        how: dict[str, Any] = {"limits": (1.0,), "resamples": _RESAMPLES, "everything": SCENES[scene].share > 0}
        for name, verdict in verdicts(*sides, kept[:end], loud, seed=trial, **how).items():
            sums = found.setdefault(name.removesuffix(" @1"), [0.0] * 4)
            sums[OUTCOMES.index(verdict[0])] += 1
            sums[3] += verdict[4]
    return found


def simulate(trials: int, found: dict[str, Any], keep: Callable[[dict[str, Any]], None], report: Reporter) -> None:
    """Fill `found` until it holds so many sessions of every cell, and `keep` it after every hundred."""
    head = {
        "noise": asdict(measured_noise()),
        "bursts": {name: asdict(bursts) for name, bursts in SCENES.items()},
        "protocols": {"fixed": FIXED, "least": LEAST, "most": MOST, "confidence": CONFIDENCE},
    }
    if any(found.get(key) != value for key, value in head.items()):
        found.clear()
        found |= head | {"coverage": {}, "rates": {}}
    noise, batches = Noise(**found["noise"]), trials // BATCH
    cells = [
        (scene, truth) for scene, bursts in SCENES.items() for truth in (_TRUTHS[1:4] if bursts.share else _TRUTHS)
    ]
    for batch in range(batches):  # every cell grows alike: what is interrupted can be shown
        for count in _COUNTS:
            report("simulate", batch, batches, f"coverage, {count} blocks")
            if _lacking(found["coverage"], str(count)) == batch:
                _add(found["coverage"], str(count), coverage(noise, count, batch))
                keep(found)
        for scene, truth in cells:
            report("simulate", batch, batches, f"{scene}, {truth:g} of the limit")
            if _lacking(found["rates"], key := f"{scene} @{truth:g}") == batch:
                _add(found["rates"], key, tally(noise, scene, truth, batch))
                keep(found)
    report("simulate", batches, batches)


def _lacking(cells: dict[str, Any], key: str) -> int:
    """The first batch that a cell lacks."""
    return int(cells.get(key, {"batches": 0})["batches"])


def _add(cells: dict[str, Any], key: str, sums: dict[str, list[float]]) -> None:
    cell = cells.setdefault(key, {"batches": 0, "sums": {name: [0.0] * len(values) for name, values in sums.items()}})
    cell["batches"] += 1
    for name, values in sums.items():
        cell["sums"][name] = [old + new for old, new in zip(cell["sums"][name], values, strict=True)]
