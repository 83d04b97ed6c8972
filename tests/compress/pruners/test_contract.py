"""Every file of compress/pruners keeps the same contract."""

from typing import Any

import pytest
import torch

from tailcut import plugins
from tailcut.allocation import NM, Dense, Pattern, Unstructured
from tailcut.compress.masks import require_plan
from tailcut.compress.statistics import Accumulator, Statistics

PRUNERS = plugins.names("tailcut.compress.pruners")
PATTERNS = [Unstructured(0.3), Unstructured(0.5), Unstructured(0.77), NM(2, 4), NM(4, 8), NM(1, 4)]


@pytest.fixture(params=PRUNERS)
def pruner(request: pytest.FixtureRequest) -> Any:
    return plugins.load("tailcut.compress.pruners", request.param)


def problem(pruner: Any, *, levels: int | None = None, columns: int = 48) -> tuple[torch.Tensor, Statistics]:
    """A weight [20, columns] and statistics of correlated inputs; `levels` makes ties (dequantised weights)."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(20, columns, generator=generator)
    if levels is not None:
        weight = (weight * levels).round() / levels
    inputs = torch.randn(30, 8, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    sums = Accumulator(columns, pruner.NEEDS)
    sums.add(inputs, 30)
    return weight, sums.result()


def test_the_three_pruners_are_there() -> None:
    assert set(PRUNERS) == {"magnitude", "sparsegpt", "wanda"}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("levels", [None, 2], ids=["no-ties", "ties"])
def test_the_mask_obeys_the_plan(pruner: Any, pattern: Pattern, levels: int | None) -> None:
    weight, stats = problem(pruner, levels=levels)
    pruned = pruner.prune(weight, pattern, stats)
    assert pruned.shape == weight.shape
    assert pruned.dtype == weight.dtype
    require_plan("matrix", weight, pruned, pattern)


@pytest.mark.parametrize("pattern", [Dense(), Unstructured(0.0), NM(4, 4)], ids=str)
def test_zero_sparsity_is_the_identity(pruner: Any, pattern: Pattern) -> None:
    weight, stats = problem(pruner)
    assert torch.equal(pruner.prune(weight, pattern, stats), weight)


def test_full_sparsity_leaves_nothing(pruner: Any) -> None:
    weight, stats = problem(pruner)
    assert (pruner.prune(weight, Unstructured(1.0), stats) == 0).all()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_the_input_is_not_modified(pruner: Any, pattern: Pattern) -> None:
    weight, stats = problem(pruner)
    before = weight.clone()
    sums = [t.clone() for t in (stats.energy, stats.hessian) if t is not None]
    pruner.prune(weight, pattern, stats)
    assert torch.equal(weight, before)
    assert all(
        torch.equal(a, b)
        for a, b in zip(sums, [t for t in (stats.energy, stats.hessian) if t is not None], strict=True)
    )


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_deterministic(pruner: Any, pattern: Pattern) -> None:
    weight, stats = problem(pruner, levels=3)
    assert torch.equal(pruner.prune(weight, pattern, stats), pruner.prune(weight.clone(), pattern, stats))


def test_dead_inputs_lose_their_weights_first_and_nothing_fails(pruner: Any) -> None:
    weight, stats = problem(pruner)
    energy = None if stats.energy is None else stats.energy.clone()
    hessian = None if stats.hessian is None else stats.hessian.clone()
    if energy is not None:
        energy[5] = 0.0
    if hessian is not None:
        hessian[5, :] = hessian[:, 5] = 0.0
    pruned = pruner.prune(weight, Unstructured(0.5), Statistics(energy, hessian))
    require_plan("matrix", weight, pruned, Unstructured(0.5))
    if pruner.NEEDS != "nothing":
        assert (pruned[:, 5] == 0).all()


def test_a_transposed_view_is_as_good_as_a_copy(pruner: Any) -> None:
    weight, stats = problem(pruner)
    view = weight.T.contiguous().T
    assert torch.equal(pruner.prune(view, Unstructured(0.5), stats), pruner.prune(weight, Unstructured(0.5), stats))
