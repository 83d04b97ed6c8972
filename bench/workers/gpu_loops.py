"""Decode steps of a model of real shapes with random weights: one loop, one CUDA graph a step, any matrices.

Every contender gets its own matrices of the same model, all stay on the GPU, and their steps are timed in turn.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Dict, List

import torch

if TYPE_CHECKING:
    from tailcut.bench.workers import gpu_contenders as contenders
    from tailcut.kernels.gpu.decode import Decoder
    from tailcut.kernels.gpu.weights import Weights
else:
    import gpu_contenders as contenders

_ROUNDS = 5
_WARM_STEPS = 3
_REASON_LENGTH = 300
Clock = Callable[[Any, int], List[float]]


@dataclass
class Seat:
    """One contender: its decoder or the reason why there is none, and what was seen."""

    name: str
    decoder: Any = None
    weight_bytes: int = 0
    path: str = ""
    reason: str = ""
    ms: List[float] = field(default_factory=list)


def measure(body: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The answer to one `decode` command; see `tailcut.bench.gpu.Decode`."""
    from tailcut.kernels.gpu.llama import SHAPES
    from tailcut.kernels.gpu.weights import random_weights

    if body["model"] not in SHAPES:
        raise ValueError(f"no shapes like {body['model']!r} are known; choose one of {', '.join(SHAPES)}")
    weights = random_weights(SHAPES[body["model"]], "cuda", torch.bfloat16, body["seed"])
    return run(weights, body, event_clock)


def run(weights: Weights, body: Dict[str, Any], clock: Clock) -> List[Dict[str, Any]]:
    """Every contender on these weights; `clock(decoder, steps)` gives the milliseconds of each step."""
    context, batch, steps = body["context"], body["batch"], body["steps"]
    each = -(-steps // _ROUNDS)
    seats = [_seat(name, weights, batch, context + _WARM_STEPS + each) for name in body["contenders"]]
    for number in range(_ROUNDS):
        for place in range(len(seats)):
            _visit(seats[(number + place) % len(seats)], context, each, clock)
    return [_entry(seat, weights, batch, context + (each - 1) / 2) for seat in seats]


def _seat(name: str, weights: Weights, batch: int, capacity: int) -> Seat:
    from tailcut.kernels.gpu.decode import Decoder
    from tailcut.kernels.gpu.model import Activated, assemble

    seat, paths = Seat(name), Counter[str]()

    def make(place: str, weight: torch.Tensor) -> contenders.Made:
        made = contenders.for_decoding(name)(weight)
        x = torch.zeros(batch, weight.shape[1], dtype=weight.dtype, device=weight.device)
        made.ready(x)
        seat.weight_bytes += made.bytes_for(x) if made.bytes_for else made.weight_bytes
        paths[made.path(x)] += 1
        return made

    def gate_up(place: str, weight: torch.Tensor) -> contenders.Apply | Activated:
        made = make(place, weight)
        return Activated(made.gated) if made.gated else made.apply

    try:
        with torch.inference_mode():
            head = contenders.compiled if name == "dense compiled" else contenders.dense
            model = assemble(
                weights,
                lambda place, weight: make(place, weight).apply,
                lambda _, weight: head(weight).apply,
                gate_up=gate_up,
            )
            seat.decoder = Decoder(model, batch, capacity)
            seat.weight_bytes += weights.head.nbytes
            seat.path = ", ".join(f"{path} {count}" for path, count in paths.most_common())
    except Exception as error:  # noqa: BLE001 - whatever a library raises is why it was not measured
        _give_up(seat, error)
    return seat


def _give_up(seat: Seat, error: BaseException) -> None:
    seat.decoder, seat.ms = None, []
    seat.reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_REASON_LENGTH]


def _visit(seat: Seat, context: int, steps: int, clock: Clock) -> None:
    """Some warm steps, then `steps` timed ones that begin with `context` tokens in the cache."""
    if seat.decoder is None:
        return
    try:
        seat.decoder.pretend(context - _WARM_STEPS)
        for _ in range(_WARM_STEPS):
            seat.decoder.step()
        seat.ms += clock(seat.decoder, steps)
    except Exception as error:  # noqa: BLE001
        _give_up(seat, error)


def event_clock(decoder: Decoder, steps: int) -> List[float]:
    """Milliseconds of each of `steps` steps in a row, on the GPU's own clock; the host only follows."""
    cuda: Any = torch.cuda  # parts of it have no types
    marks = [cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    marks[0].record()
    for mark in marks[1:]:
        decoder.step()
        mark.record()
    marks[-1].synchronize()
    return [before.elapsed_time(after) for before, after in itertools.pairwise(marks)]


def _entry(seat: Seat, weights: Weights, batch: int, length: float) -> Dict[str, Any]:
    if seat.decoder is None:
        return {"contender": seat.name, "reason": seat.reason}
    shape = weights.architecture
    cache = int(2 * shape.layers * shape.kv_heads * shape.head_dim * weights.dtype.itemsize * length * batch)
    tied = weights.embedding is weights.head
    held = seat.weight_bytes + seat.decoder.cache.nbytes + (0 if tied else weights.embedding.nbytes)
    return {
        "contender": seat.name,
        "ms": seat.ms,
        "weight_bytes": seat.weight_bytes,
        "cache_bytes": cache,
        "memory_bytes": held,
        "path": seat.path,
    }
