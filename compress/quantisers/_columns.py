"""Rounding inside a sweep over columns: what `pruners.sparsegpt.sweep` asks as it goes from left to right.

8 bits: one scale a row, from the weights before the sweep. Below: the scale of a group of 128 columns is taken when the
sweep arrives there, from weights that earlier columns have corrected, as the group will be rounded as it is then. It is
searched by what GPTQ minimises: an error e in column j costs e^2 / U_jj^2.
"""

import torch
from torch import Tensor

from tailcut.allocation import Bits
from tailcut.compress.pruners._columns import Grid
from tailcut.compress.quantisers._grid import Quantised, scale_of, to_integers
from tailcut.quantised import GROUP, LARGEST, scales_shape


class Columns:
    """The integers and scales of one matrix as they are decided. `factor`: U of the sweep."""

    def __init__(self, weight: Tensor, factor: Tensor, bits: Bits, clip: bool) -> None:
        rows, columns = int(weight.shape[0]), int(weight.shape[1])
        self._bits, self._cost = bits, factor.diagonal() ** -2.0 if clip else None
        self._q = torch.zeros(columns, rows, dtype=torch.int8, device=weight.device)
        self._scales = torch.zeros(scales_shape(bits, (rows, columns)), device=weight.device)
        if bits == 8:
            self._scales = scale_of(weight, bits, None)

    def begin(self, start: int, kept: Tensor) -> Grid:
        """The sweep arrives at column `start`; kept [columns, rows] of the block as corrected, removed ones zero."""
        if self._bits != 8:
            cost = None if self._cost is None else self._cost[start : start + len(kept)]
            self._scales[:, start // GROUP] = scale_of(kept.T, self._bits, cost)
        return Grid(self._of(start), LARGEST[self._bits])

    def end(self, start: int, finished: Tensor) -> None:
        """Integers of a block [columns, rows] that lies on its grid."""
        self._q[start : start + len(finished)] = to_integers(finished, self._of(start), self._bits)

    def _of(self, start: int) -> Tensor:
        """Scales [rows] of the block at column `start`."""
        return self._scales if self._bits == 8 else self._scales[:, start // GROUP]

    def result(self) -> Quantised:
        return Quantised(self._q.T.contiguous(), self._scales)
