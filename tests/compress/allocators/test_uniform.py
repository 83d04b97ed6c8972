"""The baseline allocation, unstructured and N:M."""

import pytest

from tailcut.allocation import NM, Budget, LayerPlan, LayerScore, LayerScores, Unstructured
from tailcut.compress.allocators import Settings, uniform
from tailcut.errors import InputError


def scores(inputs: int = 16) -> LayerScores:
    layers = tuple(LayerScore(f"l{i}", i, (8 + i, inputs), {}) for i in range(3))
    return LayerScores("x", layers, 1000)


def test_every_matrix_gets_the_same_sparsity() -> None:
    plans = uniform.allocate(scores(), Budget(0.37), Settings()).plans
    assert set(plans.values()) == {LayerPlan(Unstructured(0.37))}


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(4, 8), NM(1, 4), NM(2, 8)])
def test_every_matrix_gets_the_pattern(pattern: NM) -> None:
    allocation = uniform.allocate(scores(), Budget(pattern.sparsity, pattern=pattern), Settings())
    assert set(allocation.plans.values()) == {LayerPlan(pattern)}
    assert allocation.provenance["pattern"] == str(pattern)


def test_pattern_and_sparsity_must_agree() -> None:
    with pytest.raises(InputError, match=r"2:4 has sparsity 0\.5, the budget says 0\.7"):
        uniform.allocate(scores(), Budget(0.7, pattern=NM(2, 4)), Settings())


def test_inputs_must_be_whole_groups() -> None:
    with pytest.raises(InputError, match="l0: 10 inputs are not a multiple of 4"):
        uniform.allocate(scores(inputs=10), Budget(0.5, pattern=NM(2, 4)), Settings())
