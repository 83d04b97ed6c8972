"""What a linear sees: sums over its calibration inputs, added batch by batch.

    energy   E_j = (1 / sequences) sum over tokens of x_j^2                (Wanda's squared input norm)
    hessian  H = (2 / sequences) sum over tokens of x x^T                  (SparseGPT's layer Hessian)

No positive factor on either changes a mask. This file knows tensors only, no model and no layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Needs = Literal["nothing", "norms", "hessian"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """energy [in] float32 and hessian [in, in]; None where the pruner did not ask for it."""

    energy: Tensor | None = None
    hessian: Tensor | None = None


class Accumulator:
    """Running sums of one linear. `add` inputs [..., in] of whole sequences, then `result()`."""

    def __init__(
        self, columns: int, needs: Needs, device: torch.device | str = "cpu", hessian_dtype: torch.dtype = torch.float32
    ) -> None:
        self.sequences = 0
        self._energy = torch.zeros(columns, dtype=torch.float64, device=device) if needs != "nothing" else None
        self._gram = torch.zeros(columns, columns, dtype=hessian_dtype, device=device) if needs == "hessian" else None

    def add(self, inputs: Tensor, sequences: int) -> None:
        """Add the tokens of `sequences` sequences; inputs [..., in], any float dtype."""
        rows = inputs.detach().flatten(0, -2).float()
        self.sequences += sequences
        if self._energy is not None:
            # float32 squares, float64 sum: the sum runs over every token and must not lose the small ones
            self._energy += rows.square().sum(0, dtype=torch.float64)
        if self._gram is not None:
            typed = rows.to(self._gram.dtype)
            with exact_float32():
                self._gram.addmm_(typed.T, typed)

    def result(self) -> Statistics:
        """The statistics so far; a linear that saw nothing has zeros."""
        count = max(1, self.sequences)
        energy = None if self._energy is None else (self._energy / count).float()
        hessian = None if self._gram is None else self._gram * (2.0 / count)
        return Statistics(energy, hessian)


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32: its 10-bit mantissa makes Hessians indefinite."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
