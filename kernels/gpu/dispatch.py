"""y = x W^T by the fastest way there is for this matrix, this number of rows and this GPU.

`linear` takes the path (see paths.py) that `tune` measured as fastest for the number of rows, rounded up to a bucket, and
a fixed rule's where nothing was measured. Dense is a path wherever a dense copy is kept, and another one must be faster
than it, so a tuned layer is not slower than dense but for noise.

Times are kept per device in the user's cache folder, under device, driver, torch, triton and tailcut versions (tuned.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from tailcut.errors import InputError
from tailcut.kernels.gpu import timing, tuned
from tailcut.kernels.gpu.layer import Layer
from tailcut.kernels.gpu.paths import candidates, paths, rule, run_path

BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class Choice:
    """The path for a bucket of rows; `times_us` of every path measured, empty where the rule chose."""

    rows: int
    path: str
    tuned: bool
    times_us: Mapping[str, float]


def linear(x: Tensor, layer: Layer) -> Tensor:
    """x [..., in] in the layer's dtype -> [..., out]."""
    rows, columns = layer.shape
    if x.shape[-1] != columns or x.dtype != layer.dtype or x.device != layer.device:
        raise InputError(
            f"x must be {layer.dtype} [..., {columns}] on {layer.device}, got {x.dtype} {list(x.shape)} on {x.device}"
        )
    flat = x.reshape(-1, columns)
    if len(flat) == 0:
        return x.new_empty(*x.shape[:-1], rows)
    return run_path(choose(layer, len(flat)).path, flat, layer).view(*x.shape[:-1], rows)


def choose(layer: Layer, rows: int) -> Choice:
    """The path for `rows` rows: the fastest measured one, else the rule's."""
    bucket = bucket_of(rows)
    open_to = paths(layer, rows)
    times = tuned.times(layer.device, key_of(layer, bucket))
    measured = {path: time for path, time in times.items() if path.partition(":")[0] in open_to}
    if measured:
        return Choice(bucket, min(measured, key=lambda path: measured[path]), True, measured)
    return Choice(bucket, rule(layer, rows), False, {})


def explain(layer: Layer, rows: Iterable[int] = BUCKETS) -> tuple[Choice, ...]:
    """What `linear` does for each number of rows, and why: measured times, or none where a rule decides."""
    return tuple(choose(layer, count) for count in rows)


def tune(layer: Layer, rows: Iterable[int] = BUCKETS, *, again: bool = False) -> tuple[Choice, ...]:
    """Time the layer's paths for these numbers of rows on its GPU (CUDA graphs over copies of the weights larger than the
    L2 cache, taking turns), keep the times, and return `explain`. What was measured before is not measured again.

    Takes a second or two a bucket, and memory for the copies: twice the L2 cache a form.
    """
    buckets = sorted({bucket_of(count) for count in rows})
    if layer.device.type != "cuda":
        raise InputError(f"paths are timed on a CUDA device, the layer is on {layer.device}")
    for bucket in buckets:
        key = key_of(layer, bucket)
        known = tuned.times(layer.device, key)
        wanted = [path for path in candidates(layer, bucket) if again or path not in known]
        if wanted:
            tuned.keep(layer.device, key, timing.time_paths(layer, bucket, wanted))
    return explain(layer, buckets)


def bucket_of(rows: int) -> int:
    """The least bucket with so many rows, or the largest bucket."""
    return next((bucket for bucket in BUCKETS if bucket >= rows), BUCKETS[-1])


def key_of(layer: Layer, bucket: int) -> str:
    rows, columns = layer.shape
    return f"{layer.kind} {str(layer.dtype).removeprefix('torch.')} {rows}x{columns} {bucket}"
