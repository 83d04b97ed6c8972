"""How far a stored matrix in the compiled kernels is from float arithmetic with the same stored weights.

Whole models are no measure of that: the rounding of activations (int8 by groups of 128 where weights are quantised) moves
the logits of a badly cut model by their own size. One product does not amplify anything.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Final

import numpy as np

from tailcut.kernels.library import CpuMatrix, Isa
from tailcut.kernels.stored import Stored
from tailcut.quantised import pack_nibbles

_ROWS: Final = 4
# Rounding Gaussian activations to int8 by groups of 128 gives 0.7 % of ||y||; another scale, order or sign gives over 10 %.
QUANTISED_GAP: Final = 0.02
# float32 sums of up to some thousand terms in another order: 4e-7 measured
FLOAT_GAP: Final = 5e-6


def in_kernels(matrix: Stored, isa: Isa = "auto") -> CpuMatrix:
    """The matrix as an operator packs it."""
    values = matrix.q if matrix.packed is None else matrix.packed.values
    mask = None if matrix.packed is None else matrix.packed.mask
    if matrix.kind.endswith("Int4"):
        values = pack_nibbles(np.asarray(values, np.int8))
    return CpuMatrix(np.asarray(values), matrix.shape, mask=mask, scales=matrix.scales, isa=isa)


def gap(matrix: Stored, seed: int = 0) -> float:
    """||y - y_float|| / ||y_float|| for seeded Gaussian x [4, in]."""
    x = np.random.default_rng(seed).standard_normal((_ROWS, matrix.shape[1]), np.float32)
    want = x.astype(np.float64) @ matrix.dense().astype(np.float64).T
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(in_kernels(matrix).matmul(x) - want)) / (size or 1.0)


def worst(matrices: Iterable[Stored], limit: int = 8) -> float:
    """The largest gap of the first `limit` matrices relative to what their kind allows: up to 1 is right."""
    found = islice(matrices, limit)
    return max((gap(m) / (FLOAT_GAP if m.scales is None else QUANTISED_GAP) for m in found), default=0.0)
