"""The kept weights of a matrix that reproduce its dense outputs best, all rows at once.

    minimise  tr (W - D) G (W - D)^T   over W with zeros outside the mask,   D dense, G the damped Hessian [in, in]

Every row is a least-squares problem of its own on its support S: G_SS w_S = (G d)_S. Factorising it costs |S|^3 a row, a
matrix has thousands of rows and no two supports are alike. Conjugate gradients need only products with the whole G, which
all rows share: one GEMM [out, in] x [in, in] an iteration, the mask applied to residual and direction (a projection
onto the support). Inputs are scaled to norm 1 first, which is the Jacobi preconditioner. The error of every row falls in
every iteration, so that stopping early is safe; rows that are solved stand still.
"""

from typing import Final

import torch
from torch import Tensor

from tailcut.compress.statistics import exact_float32

ITERATIONS: Final = 100
SOLVED: Final = 1e-5  # residual over its first size at which a row is left alone: float32 gives no more


def solve_on_support(dense: Tensor, keep: Tensor, start: Tensor, gram: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """D, mask (True: kept), first guess [out, in] float32, G [in, in] positive definite -> W [out, in]."""
    scale = gram.diagonal().sqrt()
    matrix = gram / scale / scale[:, None]
    wanted = dense * scale
    fitted = (start * scale).masked_fill(~keep, 0.0)
    with exact_float32():
        residual = ((wanted - fitted) @ matrix).masked_fill_(~keep, 0.0)
        direction, size = residual.clone(), residual.square().sum(1)
        enough = size * SOLVED**2
        for _ in range(iterations):
            open_ = size > enough
            if not bool(open_.any()):
                break
            image = (direction @ matrix).masked_fill_(~keep, 0.0)
            step = _ratio(size, (direction * image).sum(1)).masked_fill_(~open_, 0.0)
            fitted.addcmul_(step[:, None], direction)
            residual.addcmul_(step[:, None], image, value=-1.0)
            size, before = residual.square().sum(1), size
            direction = residual + _ratio(size, before)[:, None] * direction
    return (fitted / scale).masked_fill(~keep, 0.0)


def output_errors(weight: Tensor, dense: Tensor, gram: Tensor) -> Tensor:
    """||(W - D) X||^2 of every row [out], float64 sums; gram [in, in] of the inputs, damped or not."""
    lost = weight - dense
    with exact_float32():
        return ((lost @ gram) * lost).sum(1, dtype=torch.float64).clamp_(min=0.0)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where a row is solved exactly."""
    return torch.where(below > 0, above / below.masked_fill(below == 0, 1.0), torch.zeros_like(above))
