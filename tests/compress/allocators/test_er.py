"""Erdős-Rényi densities against golden numbers of shared/spec/algorithms.md, sections 4 and 9."""

import pytest

from tailcut.allocation import NM, Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings, er, erk
from tailcut.errors import InputError

LLAMA_7B_BLOCK = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
LLAMA_2_70B_BLOCK = [(8192, 8192)] * 2 + [(1024, 8192)] * 2 + [(28672, 8192)] * 2 + [(8192, 28672)]


def sparsities(shapes: list[tuple[int, int]], budget: Budget) -> list[float]:
    layers = tuple(LayerScore(f"m{index}", 0, shape, {}) for index, shape in enumerate(shapes))
    plans = er.allocate(LayerScores("x", layers, 1), budget, Settings()).plans
    return [plan.pattern.sparsity for plan in plans.values()]


def test_a_matrix_that_would_keep_more_than_all_is_dense_and_the_rest_share() -> None:
    got = sparsities([(10, 10), (100, 100), (100, 1000)], Budget(0.5))
    assert got == pytest.approx([0.0, 0.15461538, 0.53503846], abs=1e-8)


def test_llama_7b_block() -> None:
    got = sparsities(LLAMA_7B_BLOCK, Budget(0.7))
    assert got == pytest.approx([0.62033] * 4 + [0.73953] * 3, abs=5e-6)  # printed to 5 decimals


def test_grouped_keys_and_values_of_llama_2_70b_stay_dense() -> None:
    got = sparsities(LLAMA_2_70B_BLOCK, Budget(0.7))
    assert got == pytest.approx([0.5914] * 2 + [0.0] * 2 + [0.7373] * 3, abs=5e-5)  # printed to 4 decimals


def test_a_large_matrix_stops_at_the_cap() -> None:
    # without it the sparsities were 0.75 and 0.9167; what the large one may not lose, the small one does
    got = sparsities([(10, 10), (30, 30)], Budget(0.9, cap=0.91))
    assert got == pytest.approx([0.81, 0.91], abs=1e-14)
    assert got[1] <= 0.91


def test_erk_is_er_for_linear_layers_under_its_own_name() -> None:
    layers = tuple(LayerScore(f"m{index}", 0, shape, {}) for index, shape in enumerate(LLAMA_2_70B_BLOCK))
    scores = LayerScores("x", layers, 1)
    one, other = (module.allocate(scores, Budget(0.6), Settings()) for module in (er, erk))
    assert one.plans == other.plans
    assert other.provenance["allocator"] == "erk"


def test_pattern_is_refused_with_advice() -> None:
    with pytest.raises(InputError, match=r"2:4.*the erk allocator.*--allocator uniform"):
        erk.allocate(LayerScores("x", (LayerScore("m", 0, (4, 4), {}),), 1), Budget(0.5, pattern=NM(2, 4)), Settings())
