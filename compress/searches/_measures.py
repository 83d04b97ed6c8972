"""The two measures of a search behind its trace, and how much of each may still be asked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tailcut.allocation import Allocation
from tailcut.compress.searches import Effort
from tailcut.compress.searches._evolve import Spent
from tailcut.compress.searches._finals import Finals
from tailcut.compress.searches._ladder import Levels
from tailcut.compress.searches._proxy import Proxy
from tailcut.compress.searches._trace import Trace
from tailcut.progress import Reporter

FINAL, PREPARE = "final", "prepare"
_REPEATS: Final = 1000


@dataclass(slots=True)
class Measures:
    """Quick and slow divergence of plans, each measured once. `fidelities` are numbers of the proxy's batches."""

    effort: Effort
    trace: Trace
    proxy: Proxy
    finals: Finals
    fidelities: tuple[int, int, int]
    report: Reporter
    until: float = field(default=float("inf"))  # on the trace's clock, or of its quick measurements
    _repeats: int = 0  # measurements in a row that were known

    def begin(self) -> None:
        """Charge what came before the first measurement."""
        self.trace.measure(PREPARE, PREPARE, "", 0, lambda: 0.0)

    @property
    def by_count(self) -> bool:
        """Whether effort is counted in evaluations instead of seconds."""
        return self.effort.evaluations is not None

    @property
    def total(self) -> float:
        """All there is: seconds, or quick measurements."""
        return float(self.effort.evaluations) if self.effort.evaluations else 60.0 * (self.effort.minutes or 0.0)

    @property
    def used(self) -> float:
        """So far."""
        trace = self.trace
        return float(sum(trace.counts.values()) - trace.count(FINAL, PREPARE)) if self.by_count else trace.seconds

    def quick(self, stage: str, levels: Levels, fidelity: int, turn: int = 0, label: str = "") -> float:
        """Nats a token by the resident model. Raises Spent where nothing more may be measured."""
        batches = self._batches(fidelity, turn)
        digest = hashlib.sha256(levels.astype("<i8").tobytes()).hexdigest()[:16]
        key = f"{digest}:{batches[0]}+{len(batches)}"
        self._repeats = self._repeats + 1 if key in self.trace.known else 0
        # known plans cost nothing: a search that has seen all of a small model's plans must end nevertheless
        if self._repeats > _REPEATS or (self._repeats == 0 and self.used >= self.until):
            raise Spent
        self.report("search", int(self.used), int(self.total), f"{stage} {label}".strip())
        tokens = self.proxy.tokens(batches)
        return self.trace.measure(key, stage, label, tokens, lambda: self.proxy.divergence(levels, batches))

    def slow(self, allocation: Allocation, label: str) -> float:
        """Nats a token of the plan as it is really cut."""
        plan = repr(sorted(allocation.plans.items(), key=lambda item: item[0]))
        key = f"{FINAL}:{hashlib.sha256(plan.encode()).hexdigest()[:16]}"
        tokens = int(self.finals.reference.tokens.size)
        return self.trace.measure(
            key, FINAL, label, tokens, lambda: self.finals.divergence(allocation, self.report, label)
        )

    def _batches(self, fidelity: int, turn: int) -> Sequence[int]:
        """Below the top fidelity each turn has other batches, taken in order and around."""
        count, every = self.fidelities[fidelity], self.fidelities[-1]
        start = turn * count % every if count < every else 0
        return [(start + place) % every for place in range(count)]
