"""What a linear sees: sums over its calibration inputs, added batch by batch.

    energy   E_j = (1 / sequences) sum over tokens of x_j^2                (Wanda's squared input norm)
    hessian  H = (2 / sequences) sum over tokens of x x^T                  (SparseGPT's layer Hessian)
    total    t_j = (1 / sequences) sum over tokens of x_j                  (DSnoT's expected input, times the tokens)
    variance v_j = variance of x_j over all tokens                         (DSnoT)

No positive factor on energy or hessian changes a mask. This file knows tensors only, no model and no layer.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Needs = Literal["nothing", "norms", "moments", "hessian"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """None where the pruner did not ask for it: NEEDS "norms" gives the energy, "hessian" that and the Hessian,
    "moments" the energy, total and variance.
    """

    energy: Tensor | None = None  # [in] float32
    hessian: Tensor | None = None  # [in, in]
    total: Tensor | None = None  # [in] float32
    variance: Tensor | None = None  # [in] float32


class Accumulator:
    """Running sums of one linear. `add` inputs [..., in] of whole sequences, then `result()`."""

    def __init__(
        self, columns: int, needs: Needs, device: torch.device | str = "cpu", hessian_dtype: torch.dtype = torch.float32
    ) -> None:
        self.needs = needs
        self.sequences = self.tokens = 0
        self._total = torch.zeros(columns, dtype=torch.float64, device=device) if needs == "moments" else None
        self._energy = torch.zeros(columns, dtype=torch.float64, device=device) if needs != "nothing" else None
        self._gram = torch.zeros(columns, columns, dtype=hessian_dtype, device=device) if needs == "hessian" else None

    def add(self, inputs: Tensor, sequences: int) -> None:
        """Add the tokens of `sequences` sequences; inputs [..., in], any float dtype."""
        rows = inputs.detach().flatten(0, -2).float()
        self.sequences += sequences
        self.tokens += len(rows)
        if self._total is not None:
            self._total += rows.sum(0, dtype=torch.float64)
        if self._energy is not None:
            # float32 squares, float64 sum: the sum runs over every token and must not lose the small ones
            self._energy += rows.square().sum(0, dtype=torch.float64)
        if self._gram is not None:
            typed = rows.to(self._gram.dtype)
            # exact also where TF32 holds the inputs: its sums lose ten times as much
            with exact_float32():
                self._gram.addmm_(typed.T, typed)

    def result(self) -> Statistics:
        """The statistics so far; a linear that saw nothing has zeros."""
        count = max(1, self.sequences)
        energy = None if self._energy is None else (self._energy / count).float()
        hessian = None if self._gram is None else self._gram * (2.0 / count)
        total = None if self._total is None else (self._total / count).float()
        return Statistics(energy, hessian, total, self._variance())

    def _variance(self) -> Tensor | None:
        """E[x^2] - E[x]^2 of the float64 sums; rounding below zero is zero."""
        if self._total is None or self._energy is None:
            return None
        tokens = max(1, self.tokens)
        return (self._energy / tokens - (self._total / tokens).square()).clamp(min=0.0).float()


def exact_float32() -> AbstractContextManager[None]:
    """No TF32: its 10-bit mantissa makes Hessians indefinite."""
    return _products("highest")


def quick_float32() -> AbstractContextManager[None]:
    """TF32 where the device has it; elsewhere float32 stays float32."""
    return _products("high")


@contextmanager
def _products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
