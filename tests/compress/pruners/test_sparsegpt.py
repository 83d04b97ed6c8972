"""SparseGPT against closed forms."""

import pytest
import torch

from tailcut.allocation import NM, Unstructured
from tailcut.compress.masks import removal_mask
from tailcut.compress.pruners import magnitude, wanda
from tailcut.compress.pruners.sparsegpt import BLOCK, DAMPING, inverse_factor, prune, prune_levels, sweep
from tailcut.compress.statistics import Statistics
from tailcut.errors import InputError


def stats_of(hessian: torch.Tensor) -> Statistics:
    return Statistics(hessian.diagonal().clone(), hessian)


def random_hessian(columns: int, seed: int, tokens: int = 400) -> torch.Tensor:
    """2 X^T X of strongly correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) + 2 * torch.randn(columns, 1, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator) @ mix
    return 2 * inputs.T @ inputs / tokens


def output_error(change: torch.Tensor, hessian: torch.Tensor) -> float:
    """sum over rows of dw H dw^T."""
    return float(((change @ hessian) * change).sum())


def test_two_by_two_by_hand() -> None:
    """w = [1, 2]: w0 has saliency 1/0.6 = 1.67, w1 has 12; w1 takes over (H01 / H11) w0, with H11 damped."""
    hessian = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    pruned = prune(torch.tensor([[1.0, 2.0]]), Unstructured(0.5), stats_of(hessian))
    damped = 3.0 + DAMPING[0] * 2.5
    assert pruned[0, 0] == 0.0
    assert float(pruned[0, 1]) == pytest.approx(2.0 + 1.0 / damped, rel=1e-6)  # float32
    assert float(pruned[0, 1]) == pytest.approx(7 / 3, abs=0.01)  # undamped: 2.3333; damping moves it by 0.003


def test_two_by_two_without_damping() -> None:
    """Removing w0 costs its saliency, w0^2 / [H^-1]_00 = 5 / 3, which is dw^T H dw of what it does to the row."""
    hessian, weight = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, 2.0]])
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    pruned = sweep(weight.clone(), factor, torch.zeros(2, dtype=torch.bool), Unstructured(0.5))
    assert pruned[0].tolist() == pytest.approx([0.0, 2.3333333], abs=1e-6)
    assert float(1.0 / factor[0, 0] ** 2) == pytest.approx(1.6666667, abs=1e-6)
    assert output_error(pruned - weight, hessian) == pytest.approx(1.6666667, abs=1e-6)


def test_factor_reproduces_the_damped_inverse() -> None:
    hessian = random_hessian(40, 0)
    factor = inverse_factor(hessian).double()
    damped = hessian.double() + DAMPING[0] * hessian.diagonal().mean().double() * torch.eye(40)
    assert torch.equal(factor, factor.triu())
    # float32 Cholesky: relative error of the product ~ eps * condition number (below 1e4 after damping) ~ 1e-3
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(40, dtype=torch.float64), atol=1e-3)


def test_diagonal_hessian_gives_no_update() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, diagonal = torch.randn(1, 100, generator=generator), torch.rand(100, generator=generator) + 0.5
    pruned = prune(weight, Unstructured(0.5), stats_of(diagonal.diag()))
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])


def test_diagonal_hessian_ranks_as_wanda_does() -> None:
    """One row, one column block, damping small against the spread: the same mask."""
    generator = torch.Generator().manual_seed(2)
    weight, diagonal = torch.randn(1, 100, generator=generator), 4.0 ** torch.randint(0, 3, (100,), generator=generator)
    stats = stats_of(diagonal.diag())
    assert torch.equal(prune(weight, Unstructured(0.5), stats) == 0, wanda.prune(weight, Unstructured(0.5), stats) == 0)


def test_diagonal_hessian_differs_from_wanda_only_by_what_is_compared() -> None:
    """Wanda's score (with the damped norms), but ranked over all rows of 128 columns, not row by row."""
    generator = torch.Generator().manual_seed(3)
    weight, diagonal = (
        torch.randn(12, BLOCK + 72, generator=generator),
        torch.rand(BLOCK + 72, generator=generator) + 0.1,
    )
    pattern = Unstructured(0.5)
    removed = prune(weight, pattern, stats_of(diagonal.diag())) == 0
    score = wanda.importance(weight, diagonal + DAMPING[0] * diagonal.mean())
    parts = [removal_mask(part, pattern, per_row=False) for part in (score[:, :BLOCK], score[:, BLOCK:])]
    assert torch.equal(removed, torch.cat(parts, dim=1))
    assert not torch.equal(removed, removal_mask(score, pattern, per_row=True))


def test_isotropic_inputs_give_magnitude() -> None:
    weight = torch.randn(16, 100, generator=torch.Generator().manual_seed(4))
    pruned = prune(weight, Unstructured(0.6), stats_of(3.0 * torch.eye(100)))
    assert torch.equal(pruned, magnitude.prune(weight, Unstructured(0.6), Statistics()))


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_error_lies_between_least_squares_and_no_update(pattern: Unstructured | NM) -> None:
    """For the mask it chose: optimal refit <= SparseGPT (always), SparseGPT < plain zeroing (on average)."""
    ours = plain = 0.0
    for seed in range(8):
        weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(seed))
        hessian = random_hessian(32, seed)
        pruned = prune(weight, pattern, stats_of(hessian))
        mask = pruned != 0
        error = output_error(pruned - weight, hessian)
        best = output_error(least_squares(weight, mask, hessian) - weight, hessian)
        assert best <= error * (1 + 1e-4)  # float32 arithmetic in ours, float64 in the refit
        ours += error
        plain += output_error(weight * mask - weight, hessian)
    assert ours < plain


def least_squares(weight: torch.Tensor, mask: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Row by row argmin of dw H dw^T over the kept weights (undamped, float64)."""
    W, H = weight.double(), hessian.double()
    fitted = torch.zeros_like(W)
    for row in range(len(W)):
        kept = mask[row]
        fitted[row, kept] = torch.linalg.solve(H[kept][:, kept], H[kept] @ W[row])
    return fitted.float()


@pytest.mark.parametrize("columns", [BLOCK - 3, BLOCK, 2 * BLOCK + 56])
def test_whole_matrix_count_is_exact_over_column_blocks(columns: int) -> None:
    weight = torch.randn(7, columns, generator=torch.Generator().manual_seed(5))
    pruned = prune(weight, Unstructured(0.333), stats_of(random_hessian(columns, 1, 600)))
    assert int((pruned == 0).sum()) == int(7 * columns * 0.333)


def test_blocks_of_n_that_do_not_divide_128() -> None:
    weight = torch.randn(4, 140, generator=torch.Generator().manual_seed(6))
    pruned = prune(weight, NM(3, 5), stats_of(random_hessian(140, 2)))
    assert ((pruned != 0).reshape(4, 28, 5).sum(-1) == 3).all()


def test_rank_deficient_hessian_is_rescued_by_damping() -> None:
    one = torch.ones(50, 1)
    pruned = prune(torch.randn(4, 50), Unstructured(0.5), stats_of(one @ one.T))
    assert torch.isfinite(pruned).all()


def test_damping_escalates_when_the_first_fails() -> None:
    """Eigenvalue -0.05 of a unit diagonal: 0.01 cannot lift it, 0.1 can."""
    hessian = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    factor = inverse_factor(hessian).double()
    damped = hessian.double() + 0.1 * torch.eye(2)
    assert torch.allclose(factor.T @ factor @ damped, torch.eye(2, dtype=torch.float64), atol=1e-4)  # condition 14


def test_hopeless_hessians_are_one_sentence() -> None:
    with pytest.raises(InputError, match="not positive definite even with damping 1"):
        inverse_factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]]))
    with pytest.raises(InputError, match="not finite"):
        inverse_factor(torch.full((2, 2), torch.inf))


def eliminated(weight: torch.Tensor, hessian: torch.Tensor, pattern: Unstructured | NM) -> torch.Tensor:
    """The method as derived, not as computed: at each column the inverse of the trailing Hessian, in float64.

    One block of columns, so that an unstructured mask is chosen once, from conditional saliencies w^2 / [H_F^-1]_00.
    """
    W, columns = weight.double().clone(), weight.shape[1]
    H = hessian.double() + DAMPING[0] * hessian.diagonal().double().mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(H[j:, j:]) for j in range(columns)]
    price = torch.stack([inverse[0, 0] for inverse in inverses])
    gone = torch.zeros_like(W, dtype=torch.bool)
    if isinstance(pattern, Unstructured):
        order = (W.square() / price).flatten().argsort(stable=True)
        gone.view(-1)[order[: int(W.numel() * pattern.sparsity)]] = True
    for j in range(columns):
        if isinstance(pattern, NM) and j % pattern.block == 0:
            group = slice(j, j + pattern.block)
            order = (W[:, group].square() / price[group]).argsort(dim=1, stable=True)
            gone[:, group] = torch.zeros_like(order, dtype=torch.bool).scatter_(
                1, order[:, : pattern.block - pattern.keep], True
            )
        error = torch.where(gone[:, j], W[:, j], 0.0) / inverses[j][0, 0]
        W[:, j:] -= error[:, None] * inverses[j][0]
    return W.masked_fill(gone, 0.0)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.8), NM(2, 4), NM(1, 4), NM(5, 8)], ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (9, 40), (13, 120)], ids=str)
def test_column_by_column_elimination_in_float64(pattern: Unstructured | NM, shape: tuple[int, int]) -> None:
    for seed in range(3):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        hessian = random_hessian(shape[1], seed, 600)
        ours, theirs = prune(weight, pattern, stats_of(hessian)), eliminated(weight, hessian, pattern)
        assert torch.equal(ours == 0, theirs == 0)
        # float32 with a condition number below 1e4 after damping
        assert torch.allclose(ours.double(), theirs, atol=2e-3 * float(weight.abs().max()))


@pytest.mark.parametrize("columns", [4, 124, 132, 260])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(3, 4)], ids=str)
def test_groups_are_exact_whatever_the_width(columns: int, pattern: NM) -> None:
    weight = torch.randn(3, columns, generator=torch.Generator().manual_seed(5))
    pruned = prune(weight, pattern, stats_of(random_hessian(columns, 1, 600)))
    assert ((pruned != 0).reshape(3, -1, 4).sum(-1) == pattern.keep).all()


def test_several_sparsities_in_one_sweep_are_those_of_one_each() -> None:
    """More columns than a block, so that corrections cross blocks."""
    columns = BLOCK + 40
    weight = torch.randn(24, columns, generator=torch.Generator().manual_seed(5))
    stats, before = stats_of(random_hessian(columns, 6)), weight.clone()
    sparsities = (0.2, 0.5, 0.7, 0.9)
    together = prune_levels(weight, sparsities, stats)
    assert torch.equal(weight, before)
    for sparsity, made in zip(sparsities, together, strict=True):
        alone = prune(weight, Unstructured(sparsity), stats)
        assert int((made == 0).sum()) == int(24 * columns * sparsity + 1e-6)
        # matrices of other shapes may sum in another order; a weight that changes sides by that is possible, none did here
        assert torch.equal(made == 0, alone == 0)
        assert torch.allclose(made, alone, rtol=1e-4, atol=1e-5)
