"""Every file of compress/pruners keeps the same contract."""

from dataclasses import fields
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailcut import plugins
from tailcut.allocation import NM, Dense, Pattern, Unstructured
from tailcut.compress.masks import require_plan
from tailcut.compress.statistics import Accumulator, Statistics
from tailcut.errors import InputError

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


def collected(stats: Statistics) -> dict[str, torch.Tensor]:
    """The tensors that the pruner asked for."""
    found = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, Pattern]:
    """Weights [1 … 5, 4 … 16] of few levels, inputs that may be silent or alike, any pattern."""
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    level = st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0001])
    weight = torch.tensor(draw(st.lists(level, min_size=rows * groups * 4, max_size=rows * groups * 4)))
    inputs = torch.randn(2, 3, groups * 4, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    scale = st.sampled_from([0.0, 1e-3, 1.0, 1.0, 1e3])
    inputs = inputs * torch.tensor(draw(st.lists(scale, min_size=groups * 4, max_size=groups * 4)))
    pattern = draw(st.builds(Unstructured, st.floats(0.0, 1.0)) | st.builds(NM, st.integers(1, 4), st.just(4)))
    return weight.reshape(rows, groups * 4), inputs, pattern


@pytest.mark.parametrize("name", PRUNERS)
@hypothesis.settings(deadline=None, max_examples=40)  # a busy machine is no failure
@given(problem=small_problems())
def test_any_small_problem_is_solved_as_planned(name: str, problem: tuple[torch.Tensor, torch.Tensor, Pattern]) -> None:
    weight, inputs, pattern = problem
    module, before = plugins.load("tailcut.compress.pruners", name), weight.clone()
    sums = Accumulator(weight.shape[1], module.NEEDS)
    sums.add(inputs, len(inputs))
    pruned = module.prune(weight, pattern, sums.result())
    assert torch.equal(weight, before)
    assert torch.isfinite(pruned).all()
    require_plan("matrix", weight, pruned, pattern)
    assert not pruned[weight == 0].any() or module.NEEDS == "hessian"  # only those that correct weights make new ones
    assert torch.equal(module.prune(weight, pattern, sums.result()), pruned)


def test_the_pruners_are_there() -> None:
    assert set(PRUNERS) == {"alps", "dsnot", "magnitude", "ria", "sparsegpt", "wanda", "wanda-variant"}


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
    sums = {name: value.clone() for name, value in collected(stats).items()}
    pruner.prune(weight, pattern, stats)
    assert torch.equal(weight, before)
    assert all(torch.equal(value, sums[name]) for name, value in collected(stats).items())


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_deterministic(pruner: Any, pattern: Pattern) -> None:
    weight, stats = problem(pruner, levels=3)
    assert torch.equal(pruner.prune(weight, pattern, stats), pruner.prune(weight.clone(), pattern, stats))


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (5, 12), (17, 132), (2, 260)], ids=str)
@pytest.mark.parametrize("pattern", [Unstructured(0.31), NM(2, 4), NM(1, 4), NM(3, 4)], ids=str)
def test_odd_shapes(pruner: Any, pattern: Pattern, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, sums = torch.randn(shape, generator=generator), Accumulator(shape[1], pruner.NEEDS)
    sums.add(torch.randn(3, 7, shape[1], generator=generator) + 0.5, 3)  # fewer tokens than most have inputs
    pruned = pruner.prune(weight, pattern, sums.result())
    require_plan("matrix", weight, pruned, pattern)
    assert torch.isfinite(pruned).all()


def test_dead_inputs_lose_their_weights_first_and_nothing_fails(pruner: Any) -> None:
    weight, stats = problem(pruner)
    sums = {name: value.clone() for name, value in collected(stats).items()}
    for value in sums.values():
        value[5] = 0.0
        if value.ndim == 2:
            value[:, 5] = 0.0
    pruned = pruner.prune(weight, Unstructured(0.5), Statistics(**sums))
    require_plan("matrix", weight, pruned, Unstructured(0.5))
    if pruner.NEEDS != "nothing":
        assert (pruned[:, 5] == 0).all()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_inputs_that_are_all_silent(pruner: Any, pattern: Pattern) -> None:
    weight, _ = problem(pruner)
    sums = Accumulator(weight.shape[1], pruner.NEEDS)
    sums.add(torch.zeros(2, 8, weight.shape[1]), 2)
    pruned = pruner.prune(weight, pattern, sums.result())
    require_plan("matrix", weight, pruned, pattern)
    assert torch.isfinite(pruned).all()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), NM(2, 4)], ids=str)
def test_weights_that_are_all_zero_stay_so(pruner: Any, pattern: Pattern) -> None:
    weight, stats = problem(pruner)
    assert not pruner.prune(torch.zeros_like(weight), pattern, stats).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_what_is_not_finite_is_refused_in_a_sentence(pruner: Any, value: float) -> None:
    weight, stats = problem(pruner)
    broken = weight.clone()
    broken[3, 4] = value
    with pytest.raises(InputError, match="weights are not finite"):
        pruner.prune(broken, Unstructured(0.5), stats)
    sums = {name: tensor.clone() for name, tensor in collected(stats).items()}
    for tensor in sums.values():
        tensor[2] = value
    if sums:
        with pytest.raises(InputError, match="activations are not finite"):
            pruner.prune(weight, Unstructured(0.5), Statistics(**sums))


def test_missing_statistics_are_named(pruner: Any) -> None:
    if pruner.NEEDS == "nothing":
        assert pruner.prune(torch.ones(2, 4), Unstructured(0.5), Statistics()).any()
    else:
        with pytest.raises(ValueError, match=f"NEEDS = '{pruner.NEEDS}'"):
            pruner.prune(torch.ones(2, 4), Unstructured(0.5), Statistics())


def test_a_transposed_view_is_as_good_as_a_copy(pruner: Any) -> None:
    weight, stats = problem(pruner)
    view = weight.T.contiguous().T
    assert torch.equal(pruner.prune(view, Unstructured(0.5), stats), pruner.prune(weight, Unstructured(0.5), stats))
