"""Intervals of values that the bench does not state itself: medians of one side, means over windows, two sessions.

`tailcut.results.Ratio` is what they are: a value, its interval and the confidence, whatever is counted. Medians of times are
treated as the bench treats its ratio (bench/stats.py): blocks are resampled whole (steps of one block share the machine's
state of that moment), then samples within each; the spread of the logarithms is the standard error, and Student's quantile
with a degree of freedom for every block but one is how far the interval reaches. The seed is fixed: a gate says the same of
the same file every time.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from tailcut.bench.checks import Subject
from tailcut.bench.stats import student
from tailcut.errors import InputError
from tailcut.results import Blocks, Procedure, Ratio, Side

Floats = npt.NDArray[np.float64]
RESAMPLES: Final = 2000
_MOST: Final = 200_000  # samples of one side; a bench takes hundreds
_ELEMENTS: Final = 1 << 22  # drawn at once, 32 MB


def median_ms(subject: Subject, side: Side | None, phase: Literal["prefill", "decode"]) -> Ratio | None:
    """Median time of a step or a prefill of one side with its interval; None without samples."""
    blocks = () if side is None else side.decode_ms if phase == "decode" else side.prefill_ms
    return median(blocks, subject.confidence, subject.measured.procedure(phase))


def median(blocks: Blocks, confidence: float, procedure: Procedure | None = None) -> Ratio | None:
    """Median of all samples with its interval; None without samples."""
    count = _count(blocks)
    if not count:
        return None
    return _around(_median(blocks), _quantile(confidence, procedure, count) * log_error(blocks), confidence)


def of_blocks(figures: Sequence[float], confidence: float) -> Ratio | None:
    """Geometric mean of one positive figure a block with Student's interval of the logarithms; None for fewer than two."""
    logs = np.log(np.asarray(figures, np.float64))
    if len(logs) < 2:
        return None
    reach = student(confidence, len(logs) - 1) * float(logs.std(ddof=1)) / np.sqrt(len(logs))
    return _around(float(np.exp(logs.mean())), reach, confidence)


def inverse(value: Ratio | None, factor: float = 1.0) -> Ratio | None:
    """factor / value: a rate from a time, such as tokens a second from ms (factor 1000 x batch)."""
    if value is None:
        return None
    return Ratio(factor / value.value, factor / value.high, factor / value.low, value.confidence)


def scaled(value: Ratio | None, factor: float) -> Ratio | None:
    """factor x value, factor > 0."""
    if value is None:
        return None
    return Ratio(factor * value.value, factor * value.low, factor * value.high, value.confidence)


def mean(values: Sequence[float], confidence: float) -> Ratio | None:
    """Mean over windows with its percentile interval; None without values."""
    found = np.asarray(values, np.float64)
    if not found.size:
        return None
    picks = np.random.default_rng(0).integers(0, found.size, (RESAMPLES, found.size))
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(found[picks].mean(axis=1), [tail, 100.0 - tail])
    return Ratio(float(found.mean()), float(low), float(high), confidence)


def of_two_sessions(new: Blocks, old: Blocks, confidence: float, procedure: Procedure | None = None) -> Ratio | None:
    """median(new) / median(old) of two sessions: they share nothing, so their errors add in squares."""
    count = min(_count(new), _count(old))
    if not count:
        return None
    error = float(np.hypot(log_error(new), log_error(old)))
    return _around(_median(new) / _median(old), _quantile(confidence, procedure, count) * error, confidence)


def quotient(new: Ratio, old: Ratio) -> Ratio:
    """new / old of independent estimates: their half-widths on the log scale add in squares."""
    low = np.hypot(np.log(new.value / new.low), np.log(old.high / old.value))
    high = np.hypot(np.log(new.high / new.value), np.log(old.value / old.low))
    value = new.value / old.value
    return Ratio(value, float(value * np.exp(-low)), float(value * np.exp(high)), min(new.confidence, old.confidence))


@lru_cache(maxsize=64)  # several limits look at the same side
def log_error(blocks: Blocks) -> float:
    """Standard error of the logarithm of the median of all samples; blocks may differ in length.

    Not `stats.median_ratio`'s, which draws whole blocks only, of both sides together: for one side's few blocks that is too
    sure of itself. Of 300 made-up sessions of 4 blocks of 16 samples, 2 % of noise between blocks and 10 % within, its 95 %
    intervals held the median in 92.7 %, these in 99.7 %; with 5 % between and 0.5 % within in 97.7 % and 96.3 %.
    """
    kept = [np.asarray(block, np.float64) for block in blocks if len(block)]
    sizes = np.asarray([len(block) for block in kept])
    if sizes.sum() > _MOST:
        raise InputError(f"{sizes.sum()} samples of one side: no bench takes more than {_MOST}; the result is damaged")
    padded = np.zeros((len(kept), sizes.max()))
    for row, block in zip(padded, kept, strict=True):
        row[: len(block)] = block
    rng = np.random.default_rng(0)
    at_once = max(1, _ELEMENTS // padded.size)
    parts = [_medians(padded, sizes, min(at_once, RESAMPLES - done), rng) for done in range(0, RESAMPLES, at_once)]
    return float(np.log(np.concatenate(parts)).std())


def _medians(padded: Floats, sizes: npt.NDArray[np.int64], count: int, rng: np.random.Generator) -> Floats:
    """padded [blocks, longest], of which the first sizes [blocks] of a row are samples -> `count` resampled medians."""
    picks = rng.integers(0, len(padded), (count, len(padded)))
    lengths = sizes[picks][..., None]
    within = (rng.random((*picks.shape, padded.shape[1])) * lengths).astype(np.int64)
    drawn = np.where(np.arange(padded.shape[1]) < lengths, padded[picks[..., None], within], np.inf)
    ordered = np.sort(drawn.reshape(count, -1), axis=1)  # what is no sample comes last
    total = lengths.sum(axis=(1, 2))[:, None]
    middle = np.take_along_axis(ordered, np.hstack([(total - 1) // 2, total // 2]), axis=1)
    return np.asarray(middle.mean(axis=1), np.float64)


def _quantile(confidence: float, procedure: Procedure | None, blocks: int) -> float:
    """Student's quantile; wider where the bench looked at its interval again and again until it was narrow enough."""
    level = max(confidence, procedure.look_confidence if procedure is not None else 0.0)
    return student(level, max(1, blocks - 1))


def _around(value: float, reach: float, confidence: float) -> Ratio:
    return Ratio(value, float(value * np.exp(-reach)), float(value * np.exp(reach)), confidence)


def _median(blocks: Blocks) -> float:
    return float(np.median(np.concatenate([np.asarray(block, np.float64) for block in blocks if len(block)])))


def _count(blocks: Blocks) -> int:
    return sum(1 for block in blocks if len(block))
