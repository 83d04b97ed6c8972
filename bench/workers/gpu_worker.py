"""Measures products and decode steps on a GPU for `tailcut bench-gpu`; runs in tailcut's own interpreter.

Commands: open (device and copy bandwidth), product (one matrix and some numbers of rows, every contender in turn), decode (one
model, every contender in turn), close. A contender that cannot run stays in the answer with the reason.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tailcut.bench.workers import gpu_contenders as contenders
    from tailcut.bench.workers import gpu_loops, wire
    from tailcut.bench.workers import gpu_timing as timing
else:
    import gpu_contenders as contenders
    import gpu_loops
    import gpu_timing as timing
    import wire

_REASON_LENGTH = 300


def open_device(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    """Which GPU and what it copies a second; TF32 stays off, as torch has it."""
    properties = torch.cuda.get_device_properties(0)
    gpu = {"name": properties.name, "capability": f"{properties.major}.{properties.minor}"}
    return {"gpu": gpu, "copy_gb_per_s": timing.copy_gb_per_s()}, {}


@dataclass
class Case:
    """One matrix; `device`, `dtype` and `capture` are others in tests without a GPU."""

    shape: List[int]
    seed: int
    pool_bytes: int
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    capture: timing.Capture = timing.Graph

    def random(self, rows: int, seed: int) -> Tensor:
        """Normal numbers [rows, in]."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(rows, self.shape[1], generator=generator, device=self.device, dtype=self.dtype)


def product(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    contenders.tuning(body["tune"])
    case = Case(body["shape"], body["seed"], body["pool_bytes"])
    found = measure_products(case, body["contenders"], body["rows"], body["rounds"])
    torch.cuda.empty_cache()
    return {"products": found}, {}


def measure_products(case: Case, names: List[str], rows: List[int], rounds: int) -> List[Dict[str, Any]]:
    """Every contender at every number of rows; the graphs of one number of rows are replayed in turn."""
    with torch.inference_mode():
        weight = case.random(case.shape[0], case.seed) * case.shape[1] ** -0.5
        pools = {name: _pool(name, weight, case.pool_bytes) for name in names}
        return [entry for count in rows for entry in _measure_rows(case, pools, count, rounds)]


def _pool(name: str, weight: Tensor, pool_bytes: int) -> List[contenders.Made] | str:
    """The matrix often enough to exceed `pool_bytes`, or why it cannot be made."""
    try:
        made = contenders.MAKERS[name](weight.clone())
        copies = max(2, -(-pool_bytes // max(1, made.weight_bytes)))
        return [made, *(made.again() for _ in range(copies - 1))]
    except Exception as error:  # noqa: BLE001 - whatever a library raises is why it was not measured
        return reason_of(error)


def _measure_rows(
    case: Case, pools: Dict[str, List[contenders.Made] | str], rows: int, rounds: int
) -> List[Dict[str, Any]]:
    x = case.random(rows, case.seed + 1)
    entries: List[Dict[str, Any]] = []
    timed: List[timing.Timed] = []
    for name, pool in pools.items():
        entry: Dict[str, Any] = {"contender": name, "rows": rows}
        entries.append(entry)
        if isinstance(pool, str):
            entry["reason"] = pool
            continue
        try:
            seen = described(pool[0], x)
            timed.append(case.capture(launches(pool, x)))
            entry |= {**seen, "us": []}
        except Exception as error:  # noqa: BLE001
            entry["reason"] = reason_of(error)
    measured = [entry for entry in entries if "us" in entry]
    for entry, samples in zip(measured, timing.in_turn(timed, rounds)):
        entry["us"] = samples
    return entries


def described(made: contenders.Made, x: Tensor) -> Dict[str, Any]:
    """Bytes, path and signal-to-noise ratios of one product; the first call compiles and tunes."""
    made.ready(x)
    y = made.apply(x)
    stored = made.stored()
    size = made.bytes_for(x) if made.bytes_for else made.weight_bytes
    entry: Dict[str, Any] = {
        "weight_bytes": size,
        "moved_bytes": size + x.nbytes + y.nbytes,
        "sqnr_db": timing.sqnr_db(y, x.double() @ stored.double().T),
        "path": made.path(x),
    }
    if made.exact is not None:
        entry["weights_sqnr_db"] = timing.sqnr_db(y, x.double() @ made.exact().double().T)
    return entry


def launches(pool: List[contenders.Made], x: Tensor) -> List[timing.Launch]:
    """One product with each copy of the matrix."""
    return [functools.partial(made.apply, x) for made in pool]


def reason_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_REASON_LENGTH]


def decode(body: Dict[str, Any], arrays: Dict[str, Any]) -> wire.Frame:
    contenders.tuning(body["tune"])
    found = gpu_loops.measure(body)
    torch.cuda.empty_cache()
    return {"decodes": found}, {}


HANDLERS: Dict[str, wire.Handler] = {"open": open_device, "product": product, "decode": decode}

if __name__ == "__main__":
    raise SystemExit(wire.serve(HANDLERS))
