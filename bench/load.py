"""How much of the machine others used while a side was timed: the reason to distrust a block."""

import time
from collections import deque
from collections.abc import Sequence

import psutil


class OthersLoad:
    """Share of all CPUs used between `start` and `share` by anything but the given processes and this one."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids] + [psutil.Process()]
        self._cpus = psutil.cpu_count() or 1
        self.start()

    def start(self) -> None:
        self._before = (time.monotonic(), _busy_seconds(), self._own_seconds())

    def seconds(self) -> float:
        """Since `start`."""
        return time.monotonic() - self._before[0]

    def share(self) -> float:
        began, busy, own = self._before
        elapsed = max(1e-9, time.monotonic() - began)
        others = (_busy_seconds() - busy) - (self._own_seconds() - own)
        return min(1.0, max(0.0, others / (elapsed * self._cpus)))

    def _own_seconds(self) -> float:
        total = 0.0
        for process in self._processes:
            times = process.cpu_times()
            total += times.user + times.system
        return total


class Lately:
    """Others' share over the latest blocks, as many as make up `seconds` of visits: in a short one there are too few ticks."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._blocks: deque[tuple[float, float]] = deque()

    def add(self, shares: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
        """The shares and lengths of one more block's visits -> others' share of the window, and its seconds."""
        used = sum(share * length for share, length in zip(shares, seconds, strict=True))
        self._blocks.append((used, sum(seconds)))
        while self._length() - self._blocks[0][1] >= self._seconds:
            self._blocks.popleft()
        return sum(used for used, _ in self._blocks) / self._length(), self._length()

    def _length(self) -> float:
        return sum(length for _, length in self._blocks)


def _busy_seconds() -> float:
    """CPU seconds spent on work or stolen by the hypervisor since boot, over all CPUs."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "steal", 0.0))
