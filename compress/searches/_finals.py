"""The slow measure: a plan cut just as `tailcut compress` cuts it, block by block, on text of its own.

Each block is pruned with statistics of its dense self on what the blocks before it, already cut, make of the
calibration text, and the judging windows pass through the cut block with it. One block is in memory; nothing is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tailcut.allocation import Allocation
from tailcut.compress.blocks import Stream
from tailcut.compress.cutting import Method, cut_blocks
from tailcut.compress.discovery import Linear
from tailcut.compress.resident import Weights
from tailcut.compress.searches._divergence import Reference
from tailcut.compress.statistics import exact_float32
from tailcut.progress import Reporter


@dataclass(frozen=True, slots=True)
class Finals:
    """What every plan is cut with and judged by. Inputs are hidden states in front of block 0, a tensor a batch."""

    weights: Weights
    linears: tuple[Linear, ...]
    method: Method
    calibration: Stream
    judging: Stream
    reference: Reference

    def divergence(self, allocation: Allocation, report: Reporter, name: str) -> float:
        """Mean nats a token of the plan on the judging windows."""
        needed = any(self.method.needs(plan) for plan in allocation.plans.values())
        calibration, judging = self.calibration.again() if needed else None, self.judging.again()
        blocks = len(self.weights.skeleton.blocks)
        report("final", 0, blocks, name)
        with exact_float32():
            cuts = cut_blocks(self.weights, self.linears, allocation, self.method, calibration)
            for index, cut in enumerate(cuts):
                with self.weights.block(index, cut.tensors) as block:
                    judging.advance(index, block)
                report("final", index + 1, blocks, name)
            return self._mean(judging.batches)

    def _mean(self, hidden: Sequence[Tensor]) -> float:
        parts = [self.reference.divergence(batch, states) for batch, states in enumerate(hidden)]
        return sum(sums for sums, _ in parts) / sum(count for _, count in parts)
