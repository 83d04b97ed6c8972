"""Least squares on a support, against an exact solution of every row in float64."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tailcut.compress.recovery._solve import output_errors, solve_on_support

ROWS, COLUMNS = 12, 40


def problem(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Dense weights, a mask with half of each row kept, and the damped Gram matrix of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator)
    inputs *= torch.logspace(-1, 1, COLUMNS)  # as far apart as activations of real models are
    gram = inputs.T @ inputs / tokens
    gram.diagonal().add_(0.01 * gram.diagonal().mean())
    keep = torch.rand(ROWS, COLUMNS, generator=generator) < 0.5
    return torch.randn(ROWS, COLUMNS, generator=generator), keep, gram


def exact(dense: Tensor, keep: Tensor, gram: Tensor) -> Tensor:
    """G_SS w_S = (G d)_S for each row by itself, float64."""
    found = torch.zeros_like(dense, dtype=torch.float64)
    for row in range(len(dense)):
        support = keep[row].nonzero().flatten()
        if len(support):
            matrix = gram.double()[support][:, support]
            found[row, support] = torch.linalg.solve(matrix, (gram.double() @ dense[row].double())[support])
    return found


@pytest.mark.parametrize("tokens", [400, 20])  # 20: fewer tokens than inputs, only the damping makes it definite
def test_every_row_is_the_exact_solution(tokens: int) -> None:
    dense, keep, gram = problem(tokens)
    found = solve_on_support(dense, keep, dense, gram, iterations=500)
    wanted = exact(dense, keep, gram)
    ours, best = (output_errors(one.float(), dense, gram) for one in (found, wanted))
    # float32 products of a matrix with condition numbers up to 1e5: the error is what counts, to a thousandth
    assert (ours <= best * 1.001 + 1e-6 * output_errors(torch.zeros_like(dense), dense, gram)).all()
    assert (ours >= best * 0.999 - 1e-6 * output_errors(torch.zeros_like(dense), dense, gram)).all()


def test_no_iteration_makes_a_row_worse_and_zeros_are_exact() -> None:
    dense, keep, gram = problem(60)
    start = dense * keep
    errors = [output_errors(solve_on_support(dense, keep, start, gram, steps), dense, gram) for steps in range(12)]
    floor = 1e-6 * errors[0]  # float32 rounding of the start's scaling
    for before, after in pairwise(errors):
        assert (after <= before + floor).all()
    best = output_errors(exact(dense, keep, gram).float(), dense, gram).sum()
    assert errors[0].sum() - errors[-1].sum() > 0.8 * (errors[0].sum() - best)
    found = solve_on_support(dense, keep, dense, gram)
    assert not found.masked_fill(keep, 0.0).any()
    assert not torch.signbit(found.masked_fill(keep, 0.0)).any()


def test_a_full_row_is_the_dense_row_and_an_empty_one_stays_empty() -> None:
    dense, keep, gram = problem(100)
    keep[0], keep[1] = True, False
    found = solve_on_support(dense, keep, torch.zeros_like(dense), gram, iterations=500)
    assert torch.allclose(found[0], dense[0], atol=1e-2)  # along directions of tiny energy; its outputs are exact:
    assert output_errors(found, dense, gram)[0] < 1e-6 * output_errors(torch.zeros_like(dense), dense, gram)[0]
    assert not found[1].any()
    assert torch.isfinite(found).all()
