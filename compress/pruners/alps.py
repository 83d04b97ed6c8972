"""ALPS (Meng et al. 2024, NeurIPS): the mask by ADMM on the layer's output error, then a conjugate gradient refit.

    minimise  tr (W - B) G (W - B)^T   over matrices B with the pattern's zeros,   G the damped Hessian

in coordinates where every input has norm 1 (columns of W times d_j = sqrt(G_jj)). ADMM splits B into a dense part
and a sparse part D, with a penalty rho that grows until the mask of D stands still:

    B = W + rho (D - W - U) (G + rho I)^-1        D + U = B + U,  D its largest entries, U the others

The first is the paper's update written as a correction of W, which keeps float32 accurate where G is nearly singular.
As D and U never overlap, one matrix and a mask hold both. Last, the weights of the mask are fitted to the dense
output by conjugate gradients, all rows at once; the unit diagonal makes that Jacobi-preconditioned. The penalty's
schedule (0.1, times 1.3, 1.2 or 1.1 by how many entries changed, a fifth while nothing does) and the counts are those
of the authors' code; so is the ranking over the whole matrix. Unlike theirs, no eigenvectors are needed: a Cholesky
inverse in float64 for each rho. Inputs that were never active go first.

Memory beside weight and Hessian, measured on a CPU: 31 bytes times in^2 (G, an inverse, and two float64 matrices while
one is made) and 55 times out * in. A matrix of 4096 x 11008 needs 6.2 GB. Time goes by in^2 out an iteration (33 to 39
on SmolLM2-135M) and in^3 a change of rho (11 or 12 there).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tailcut.allocation import Dense, Pattern
from tailcut.compress.masks import removal_mask
from tailcut.compress.pruners._given import damped, finite_weight, hessian_of
from tailcut.compress.statistics import Needs, Statistics, exact_float32

NEEDS: Final[Needs] = "hessian"
DAMPING: Final = 0.01  # share of the mean diagonal
RHO: Final = 0.1  # first penalty
ITERATIONS: Final = 300
EVERY: Final = 3  # iterations between two looks at the mask
SETTLED: Final = (30, 3e-4)  # after so many iterations a smaller share of changed entries ends the search
GROWTH: Final = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # changed entries over kept ones above this: rho times that
REFIT: Final = 10  # conjugate gradient steps


def prune(weight: Tensor, pattern: Pattern, stats: Statistics) -> Tensor:
    """weight [out, in] float32 with `stats.hessian` [in, in] -> pruned and refitted weight."""
    if isinstance(pattern, Dense) or pattern.sparsity == 0.0:
        return weight
    gram = damped(hessian_of(stats), DAMPING)
    scale = gram.diagonal().sqrt()
    gram = gram.div_(scale).div_(scale[:, None])
    dense = finite_weight(weight) * scale
    problem = _Problem(dense, gram, hessian_of(stats).diagonal() == 0, pattern)
    with exact_float32():
        mask, found = problem.search()
        return (problem.refit(mask, found) / scale).masked_fill(mask, 0.0)


@dataclass(frozen=True, slots=True)
class _Problem:
    """Scaled weight [out, in], its Gram matrix [in, in] with a unit diagonal, dead inputs [in], the pattern."""

    dense: Tensor
    gram: Tensor
    dead: Tensor
    pattern: Pattern

    def removed(self, values: Tensor) -> Tensor:
        """True at what the pattern removes of `values`: the smallest, and dead inputs before any."""
        return removal_mask(values.abs().masked_fill(self.dead, -1.0), self.pattern, per_row=False)

    def search(self) -> tuple[Tensor, Tensor]:
        """The mask (True: removed) and the dense part of ADMM where it stopped, both [out, in]."""
        first = last = self.removed(self.dense)
        kept = max(1, first.numel() - int(first.sum()))
        rho, inverse, growing = *self.inverse(RHO), False
        found, split, dual = self.dense, self.dense.masked_fill(first, 0.0), torch.zeros_like(self.dense)
        for step in range(1, ITERATIONS + 1):
            found = torch.addmm(self.dense, split - self.dense, inverse, alpha=rho)
            both = found + dual
            mask = self.removed(both)
            dual = both.masked_fill(~mask, 0.0)
            if step % EVERY == 0:
                changed, last = int((mask != last).sum()), mask
                if (growing and not changed) or (step > SETTLED[0] and changed < SETTLED[1] * kept):
                    break
                wanted, growing = _next_penalty(rho, changed / kept, growing)
                if changed and not growing:  # too strong from the start: begin again
                    both, mask, dual = self.dense, first, torch.zeros_like(dual)
                before, (rho, inverse) = rho, self.inverse(wanted)
                dual *= before / rho  # U is the multiplier over rho
            split = both.masked_fill(mask, 0.0).sub_(dual)
        return self.removed(found), found

    def inverse(self, rho: float) -> tuple[float, Tensor]:
        """(G + rho I)^-1 float32 [in, in], and the rho it took: ten times more until the sum is positive definite."""
        while True:
            shifted = self.gram.double()
            shifted.diagonal().add_(rho)
            factor, failed = torch.linalg.cholesky_ex(shifted)
            del shifted
            if int(failed) == 0:
                return rho, torch.cholesky_inverse(factor).float()
            rho *= 10

    def refit(self, mask: Tensor, start: Tensor) -> Tensor:
        """Conjugate gradients on the kept weights of every row, from `start`; zero where the mask is."""
        fitted = start.masked_fill(mask, 0.0)
        residual = ((self.dense - fitted) @ self.gram).masked_fill_(mask, 0.0)
        direction, size = residual.clone(), residual.square().sum(1)
        for _ in range(REFIT):
            image = direction @ self.gram
            step = _ratio(size, (direction * image).sum(1))
            fitted.addcmul_(step[:, None], direction)
            residual.addcmul_(step[:, None], image.masked_fill_(mask, 0.0), value=-1.0)
            size, before = residual.square().sum(1), size
            direction = residual + _ratio(size, before)[:, None] * direction
        return fitted


def _next_penalty(rho: float, changed: float, growing: bool) -> tuple[float, bool]:
    """rho after a look at the mask, and whether it grows from now on; `changed` is relative to the kept entries."""
    for share, factor in GROWTH:
        if changed > share and (growing or share > 0.0):
            return rho * factor, True
    return rho / 5, False


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where a row is fitted exactly."""
    return torch.where(below > 0, above / below.masked_fill(below == 0, 1.0), torch.zeros_like(above))
