"""ALPS against the paper's own formulas in float64, the best of all masks, and exact least squares."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tailcut.allocation import NM, Pattern, Unstructured
from tailcut.compress.pruners import sparsegpt
from tailcut.compress.pruners._given import damped
from tailcut.compress.pruners.alps import DAMPING, prune
from tailcut.compress.statistics import Statistics

Array = npt.NDArray[np.float64]


def random_hessian(columns: int, seed: int, tokens: int = 400) -> torch.Tensor:
    """2 X^T X of correlated inputs of different sizes, some of them with a common part."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) + 2 * torch.randn(columns, 1, generator=generator)
    inputs = torch.randn(tokens, columns, generator=generator) @ mix
    return 2 * inputs.T @ inputs / tokens


def error(change: torch.Tensor, gram: torch.Tensor) -> float:
    """sum over rows of dw G dw^T, float64."""
    return float(((change.double() @ gram.double()) * change.double()).sum())


def kept_largest(values: Array, pattern: Pattern) -> Array:
    """values [out, in] with what the pattern removes at zero."""
    if isinstance(pattern, NM):
        rows = values.reshape(-1, pattern.block)
        removed = pattern.block - pattern.keep
    else:
        rows, removed = values.reshape(1, -1), int(values.size * pattern.sparsity + 1e-6)
    out = rows.copy()
    np.put_along_axis(out, np.argsort(np.abs(rows), axis=1, kind="stable")[:, :removed], 0.0, axis=1)
    return out.reshape(values.shape)


def reference(weight: torch.Tensor, hessian: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """ADMM with V and right-hand sides as the paper writes them, eigenvectors, and an exact last fit, in float64."""
    G = hessian.double().numpy()
    G = G + DAMPING * np.diag(G).mean() * np.eye(len(G))
    scale = np.sqrt(np.diag(G))
    G = G / np.outer(scale, scale)
    W = weight.double().numpy() * scale
    values, vectors = np.linalg.eigh(G)
    start = kept_largest(W, pattern)
    D, V, rho, grows, last = start, np.zeros_like(W), 0.1, False, start == 0
    B, kept = W, np.count_nonzero(start)
    for step in range(1, 301):
        B = (W @ G - V + rho * D) @ (vectors / (values + rho)) @ vectors.T
        D = kept_largest(B + V / rho, pattern)
        V = V + rho * (B - D)
        if step % 3:
            continue
        changed = np.count_nonzero((D == 0) != last)
        last = D == 0
        if grows and changed == 0:
            break
        if step > 30 and changed < 3e-4 * kept:
            break
        if changed > 0.1 * kept:
            rho, grows = rho * 1.3, True
        elif changed > 0.005 * kept:
            rho, grows = rho * 1.2, True
        elif grows:
            rho *= 1.1
        else:
            rho /= 5
            if changed:
                D, V = start, np.zeros_like(W)
    mask = kept_largest(B, pattern) != 0
    fitted = np.zeros_like(W)
    for row, keep in enumerate(mask):
        fitted[row, keep] = np.linalg.solve(G[np.ix_(keep, keep)], G[keep] @ W[row])
    return torch.from_numpy(fitted / scale)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.7), Unstructured(0.85), NM(2, 4)], ids=str)
def test_the_paper_s_formulas_give_the_same_error(pattern: Pattern) -> None:
    """Rounding may end the search at another mask of the same worth: the errors agree, and most of the mask."""
    for seed in range(3):
        weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(seed))
        hessian = random_hessian(64, seed)
        gram = damped(hessian, DAMPING)
        ours = prune(weight, pattern, Statistics(None, hessian))
        theirs = reference(weight, hessian, pattern)
        # ten steps of conjugate gradients against an exact fit, and a few masked weights that may differ
        assert error(ours - weight, gram) == pytest.approx(error(theirs - weight, gram), rel=0.05)
        assert float(((ours != 0) == (theirs != 0)).float().mean()) > 0.97


@pytest.mark.parametrize("sparsity", [0.6, 0.7, 0.8])
def test_better_than_sparsegpt_where_much_is_cut(sparsity: float) -> None:
    ours = theirs = 0.0
    for seed in range(6):
        weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(seed))
        hessian = random_hessian(96, seed)
        stats, gram = Statistics(hessian.diagonal().clone(), hessian), damped(hessian, DAMPING)
        ours += error(prune(weight, Unstructured(sparsity), stats) - weight, gram)
        theirs += error(sparsegpt.prune(weight, Unstructured(sparsity), stats) - weight, gram)
    assert ours < 0.9 * theirs  # the paper reports more; any loss of that lead is a bug


def test_close_to_the_best_of_all_masks() -> None:
    """12 weights of a row, 5 stay: 792 masks, each fitted exactly."""
    ours = best = 0.0
    for seed in range(8):
        weight, hessian = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)), random_hessian(12, seed)
        gram = damped(hessian, DAMPING)
        found = prune(weight, Unstructured(7 / 12), Statistics(None, hessian))
        errors = [error(exact_fit(weight, gram, list(keep)) - weight, gram) for keep in combinations(range(12), 5)]
        mine = error(found - weight, gram)
        assert mine >= min(errors) * (1 - 1e-3)  # float32 weights against float64 ones
        ours, best = ours + mine, best + min(errors)
    assert ours < 1.35 * best  # a heuristic; magnitude is several times off on these


def exact_fit(weight: torch.Tensor, gram: torch.Tensor, keep: list[int]) -> torch.Tensor:
    fitted, G = torch.zeros_like(weight, dtype=torch.float64), gram.double()
    fitted[0, keep] = torch.linalg.solve(G[keep][:, keep], G[keep] @ weight[0].double())
    return fitted


def test_the_kept_weights_are_fitted() -> None:
    """Ten steps of conjugate gradients come within a few per cent of what the mask allows."""
    weight, hessian = torch.randn(8, 40, generator=torch.Generator().manual_seed(1)), random_hessian(40, 1)
    gram = damped(hessian, DAMPING)
    pruned = prune(weight, Unstructured(0.5), Statistics(None, hessian))
    fits = [exact_fit(w[None], gram, p.nonzero().flatten().tolist()) for w, p in zip(weight, pruned, strict=True)]
    least = error(torch.cat(fits) - weight, gram)
    assert least * (1 - 1e-4) <= error(pruned - weight, gram) <= 1.05 * least


def test_isotropic_inputs_give_magnitude() -> None:
    """Nothing can make up for anything: the largest weights stay as they are."""
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    pruned = prune(weight, Unstructured(0.6), Statistics(None, 5.0 * torch.eye(40)))
    largest = torch.from_numpy(kept_largest(weight.double().numpy(), Unstructured(0.6))).float()
    assert torch.allclose(pruned, largest, atol=1e-6)  # scaled and scaled back in float32
    assert torch.equal(pruned == 0, largest == 0)


def test_scaling_the_inputs_changes_nothing() -> None:
    weight, hessian = torch.randn(6, 40, generator=torch.Generator().manual_seed(3)), random_hessian(40, 2)
    a, b = (prune(weight, Unstructured(0.6), Statistics(None, c * hessian)) for c in (1.0, 2.0**-20))
    assert torch.equal(a, b)  # a power of 4 is exact through square roots as well


def test_fewer_tokens_than_inputs() -> None:
    """A singular Hessian: damping makes the problem definite."""
    inputs = torch.randn(5, 48, generator=torch.Generator().manual_seed(4))
    weight = torch.randn(12, 48, generator=torch.Generator().manual_seed(5))
    pruned = prune(weight, Unstructured(0.7), Statistics(None, inputs.T @ inputs))
    assert torch.isfinite(pruned).all()
    assert float(((pruned - weight) @ inputs.T).square().sum()) < 0.2 * float((weight @ inputs.T).square().sum())
