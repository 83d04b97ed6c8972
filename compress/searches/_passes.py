"""Passes of a search over its text: TF32 products on a GPU, also where all around them is exact.

Plans are compared with each other and with a dense model that passed in the same way. What is summed of the inputs stays exact
(see Accumulator), and so does the arithmetic of pruners.
"""

from typing import Self

from torch import Tensor, nn

from tailcut.compress.blocks import Stream
from tailcut.compress.statistics import quick_float32


class QuickStream(Stream):
    """A stream whose blocks run with TF32 products."""

    __slots__ = ()

    @classmethod
    def of(cls, stream: Stream) -> Self:
        """The same, from where it stands."""
        return cls(list(stream.batches), stream.tape, stream.device)

    def _run(self, index: int, block: nn.Module, hidden: Tensor) -> Tensor:
        with quick_float32():
            return super()._run(index, block, hidden)
