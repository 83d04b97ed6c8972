"""The quick measure: the whole model stays on the device, and a plan changes only the matrices whose level changes.

Weights come from the bank, cut with the dense model's statistics, not with those of the model as cut so far: this
orders plans nearly as the real cutting does, in a hundredth of the time. Text: windows that no statistics saw, the same
for every plan that is compared. Arithmetic in float32, products in TF32 on a GPU: bfloat16 would round activations too.
"""

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from tailcut.compress.blocks import Stream
from tailcut.compress.resident import Weights
from tailcut.compress.searches._bank import Bank
from tailcut.compress.searches._divergence import Reference
from tailcut.compress.searches._grid import Grid
from tailcut.compress.searches._ladder import Levels
from tailcut.compress.statistics import quick_float32

_NONE: Final = -1  # a matrix as the model has it, which need not be a level


class Proxy:
    """A resident model at some plan. `resident` is a second skeleton, whose blocks keep their weights on the device."""

    def __init__(
        self, grid: Grid, bank: Bank, resident: Weights, inputs: Sequence[Tensor], reference: Reference
    ) -> None:
        """`inputs`: hidden states in front of block 0, one tensor a batch, as the reference's tape ran them."""
        self._grid, self._bank, self._inputs, self._reference = grid, bank, inputs, reference
        self._blocks = [resident.load_block(index) for index in range(len(resident.skeleton.blocks))]
        self._now = [_NONE] * len(grid.names)
        self._parameters = [_parameter(resident, name) for name in grid.names]

    @property
    def batches(self) -> int:
        """How many batches of text there are."""
        return len(self._inputs)

    def tokens(self, batches: Sequence[int]) -> int:
        """Tokens of these batches."""
        return sum(int(self._inputs[batch].shape[0] * self._inputs[batch].shape[1]) for batch in batches)

    def divergence(self, levels: Levels, batches: Sequence[int]) -> float:
        """Mean nats a token of the plan on these batches."""
        self._become(levels)
        total, count = 0.0, 0
        with quick_float32():
            for batch in batches:
                sums, tokens = self._reference.divergence(batch, self._run(self._inputs[batch]))
                total, count = total + sums, count + tokens
        return total / count

    def _become(self, levels: Levels) -> None:
        for place, level in enumerate(levels.tolist()):
            if self._now[place] != level:
                self._parameters[place].data.copy_(self._bank.weight(self._grid.names[place], level))
                self._now[place] = level

    def _run(self, hidden: Tensor) -> Tensor:
        stream = Stream([hidden], self._reference.stream.tape, self._reference.stream.device)
        for index, block in enumerate(self._blocks):
            stream.advance(index, block)
        return stream.batches[0]


def _parameter(resident: Weights, name: str) -> nn.Parameter:
    parameter = resident.skeleton.model.get_submodule(name).weight
    if not isinstance(parameter, nn.Parameter):
        raise TypeError(f"{name} has no weight")
    return parameter
