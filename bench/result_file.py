"""Reading a result that decides something: what the codec cannot know of it is checked here, once.

The codec refuses what is no `BenchResult` at all. Refused here is what no bench writes: engine names that look like others,
times of zero, intervals the wrong way round, a stated ratio that is not the ratio of the samples beside it.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from tailcut import codec
from tailcut.errors import InputError
from tailcut.results import BenchResult, Blocks, EngineResult, PackageFacts, Quality, Ratio, Side

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._:-]{0,63}")
_ROUNDING: Final = 1e-6  # of a ratio that is computed again from the same samples
_EDITED: Final = "the file was changed after it was measured"


def read_result(path: Path) -> BenchResult:
    """A result to be judged; InputError names the file and what is wrong with it."""
    result = codec.load(BenchResult, path)
    wrong = next(_faults(result), None)
    if wrong is not None:
        raise InputError(f"{path}: {wrong}")
    return result


def _faults(result: BenchResult) -> Iterator[str]:
    yield from head_faults([engine.engine for engine in result.engines], result.dense, result.sparse)
    for engine in result.engines:
        yield from (f"engine {engine.engine}: {fault}" for fault in _engine_faults(engine))
    for quality in result.quality:
        yield from (f"quality on {quality.text}: {fault}" for fault in _quality_faults(quality))


def head_faults(names: Sequence[str], dense: PackageFacts, sparse: PackageFacts) -> Iterator[str]:
    """Of the engines' names and the packages."""
    for name in names:
        if not _NAME.fullmatch(name):
            yield f"the engine name {name!a} is not plain lower-case ASCII; a name that looks like another is refused"
        if names.count(name) > 1:
            yield f"the engine {name} is in it twice"
    for role, facts in (("dense", dense), ("sparse", sparse)):
        if facts.bytes_on_disk < 0 or not 0.0 <= facts.sparsity <= 1.0:
            yield f"the {role} package has {facts.bytes_on_disk} bytes and sparsity {facts.sparsity}"


def _engine_faults(engine: EngineResult) -> Iterator[str]:
    for side in (engine.dense, engine.sparse):
        if side is not None:
            yield from _side_faults(side)
    sides = (engine.dense, engine.sparse)
    for what, ratio in (("decode", engine.decode_speedup), ("prefill", engine.prefill_speedup)):
        if ratio is not None:
            yield from ratio_faults(f"{what} speedup", ratio)
            top, bottom = (_times(side, what) for side in sides)
            if not (top and bottom):
                yield f"a {what} speedup is stated without samples; {_EDITED}"
            else:
                yield from stated_faults(f"{what} speedup", ratio.value, _median(top) / _median(bottom))


def _side_faults(side: Side) -> Iterator[str]:
    for what in ("decode", "prefill"):
        if any(not ms > 0 for block in _times(side, what) for ms in block):
            yield f"a {what} time of the {side.role} side is not positive"
    if side.roofline.weight_bytes < 0 or side.roofline.kv_bytes < 0 or side.peak_rss_bytes < 0:
        yield f"the {side.role} side states a negative number of bytes"
    if side.logits_gap is not None and side.logits_gap < 0:
        yield f"the {side.role} side's logits gap {side.logits_gap} is negative"


def _quality_faults(quality: Quality) -> Iterator[str]:
    yield from ratio_faults("the perplexity ratio", quality.ratio)
    windows = len(quality.dense_nll)
    if not windows or len(quality.sparse_nll) != windows or len(quality.kl_nats) not in (0, windows):
        yield "dense and sparse were not scored on the same windows"
        return
    scored = quality.tokens_scored // windows
    if scored < 1 or scored * windows != quality.tokens_scored:
        yield f"{quality.tokens_scored} scored tokens do not belong to {windows} windows"
        return
    with np.errstate(over="ignore"):  # infinite where it is absurd, which is not what is stated
        gap = np.exp((np.mean(quality.sparse_nll) - np.mean(quality.dense_nll)) / scored)
    yield from stated_faults("the perplexity ratio", quality.ratio.value, float(gap))
    if any(nats < -1e-4 for nats in quality.kl_nats):  # float32 logits round a KL of 0 to either side
        yield "a KL is negative, which no two distributions have"


def ratio_faults(name: str, ratio: Ratio) -> Iterator[str]:
    """An interval the wrong way round."""
    if not (0.0 < ratio.low <= ratio.high and ratio.value > 0.0 and 0.5 <= ratio.confidence < 1.0):
        yield f"{name} {ratio.value} with the interval {ratio.low} to {ratio.high} at {ratio.confidence} is no interval"


def stated_faults(name: str, stated: float, computed: float) -> Iterator[str]:
    """A figure that is not that of its samples."""
    if not abs(stated - computed) <= _ROUNDING * computed:
        yield f"{name} is stated as {stated:.6g}, its samples say {computed:.6g}; {_EDITED}"


def _times(side: Side | None, what: str) -> Blocks:
    if side is None:
        return ()
    return side.decode_ms if what == "decode" else side.prefill_ms


def _median(blocks: Blocks) -> float:
    return float(np.median(np.concatenate([np.asarray(block, np.float64) for block in blocks])))
