"""Timing on a GPU: CUDA graphs over distinct copies of the weights, replayed in turn with those of the other contenders."""

from __future__ import annotations

from typing import Any, Callable, Protocol, Sequence

import torch
from torch import Tensor

Launch = Callable[[], object]
_cuda: Any = torch.cuda  # parts of it have no types
_COPY_BYTES = (1 << 28, 1 << 30)
_COPY_WARM = 5  # replays before the timed ones
_LEAST_LAUNCHES = 8  # in one graph: the start of a replay costs a few microseconds


class Timed(Protocol):
    """Something that can be timed again and again."""

    def us(self) -> float:
        """Microseconds for one launch, from one more replay."""
        ...


class Graph:
    """Launches captured in one CUDA graph."""

    def __init__(self, launches: Sequence[Launch]) -> None:
        self.launches = list(launches) * -(-_LEAST_LAUNCHES // len(launches))
        stream = _cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for launch in self.launches[:3]:  # compiles, tunes and allocates outside of the capture
                launch()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            for launch in self.launches:
                launch()
        self.us()

    def us(self) -> float:
        begin, end = _cuda.Event(enable_timing=True), _cuda.Event(enable_timing=True)
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3 / len(self.launches)


Capture = Callable[[Sequence[Launch]], Timed]


def in_turn(timed: Sequence[Timed], rounds: int) -> list[list[float]]:
    """Microseconds of each, one a round; every round begins one place later."""
    samples: list[list[float]] = [[] for _ in timed]
    for number in range(rounds):
        for step in range(len(timed)):
            place = (number + step) % len(timed)
            samples[place].append(timed[place].us())
    return samples


def copy_gb_per_s(passes: int = 9) -> list[float]:
    """Device to device, bytes read and bytes written, in 1e9 a second: the fastest of a few ways to do it, warm.

    One way alone misses the memory's speed: torch's copy in a graph has shown 2430 and 2990 on the same kind of GPU.
    """
    found = [_copied(size, way, passes) for size in _COPY_BYTES for way in ("copy", "kernel")]
    return max(found, key=lambda rates: sorted(rates)[len(rates) // 2])


def _copied(size: int, way: str, passes: int) -> list[float]:
    """`copy` is cudaMemcpy's way, `kernel` an elementwise kernel that reads one tensor and writes the other."""
    source = torch.ones(size // 4, device="cuda")
    target = torch.empty_like(source)
    launch: Launch = (lambda: target.copy_(source)) if way == "copy" else (lambda: torch.neg(source, out=target))
    graph = Graph([launch])
    for _ in range(_COPY_WARM):
        graph.us()
    return [2 * size / graph.us() / 1e3 for _ in range(passes)]


def sqnr_db(found: Tensor, reference: Tensor) -> float:
    """10 log10(|reference|^2 / |found - reference|^2), both [rows, out]; the reference is float64."""
    noise = float((found.double() - reference).square().sum())
    signal = float(reference.square().sum())
    return 10 * torch.log10(torch.tensor(signal / max(noise, 1e-300), dtype=torch.float64)).item()
