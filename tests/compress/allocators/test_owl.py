"""OWL against the golden numbers of shared/spec/algorithms.md, section 9, and its edges."""

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings, owl
from tailcut.errors import InputError


def made(values: list[float], sizes: list[int] | None = None) -> LayerScores:
    """Blocks of one matrix each."""
    layers = [
        LayerScore(f"b{block}", block, (1, sizes[block] if sizes else 1), {"owl": value})
        for block, value in enumerate(values)
    ]
    return LayerScores("made", tuple(layers), 1)


def sparsities(scores: LayerScores, budget: Budget, settings: Settings | None = None) -> list[float]:
    plans = owl.allocate(scores, budget, settings or Settings()).plans
    return [plan.pattern.sparsity for plan in plans.values()]


@pytest.mark.parametrize("compat", [False, True])
def test_worked_example(compat: bool) -> None:
    got = sparsities(made([1.0, 3.0, 2.0, 6.0]), Budget(0.7), Settings(spread=0.08, compat=compat))
    assert got == pytest.approx([0.764, 0.700, 0.732, 0.604], abs=1e-12)


def test_unequal_blocks_meet_the_weighted_budget_unless_compat_is_asked_for() -> None:
    scores = made([1.0, 2.0, 4.0], [10, 20, 70])
    weighted = sparsities(scores, Budget(0.7))
    published = sparsities(scores, Budget(0.7), Settings(compat=True))
    assert np.average(weighted, weights=[10, 20, 70]) == pytest.approx(0.7, abs=1e-15)
    assert np.mean(published) == pytest.approx(0.7, abs=1e-15)
    assert np.diff(weighted) == pytest.approx(np.diff(published), abs=1e-15)  # the same rule but for the shift
    assert max(published) - min(published) == pytest.approx(0.16, abs=1e-15)


def test_a_wide_range_is_water_filled_and_refused_in_compat() -> None:
    scores = made([1.0, 2.0, 8.0])
    got = sparsities(scores, Budget(0.9), Settings(spread=0.3))
    assert got[0] == 0.99
    assert np.mean(got) == pytest.approx(0.9, abs=1e-15)
    with pytest.raises(InputError, match=r"block 0: the published arithmetic gives a sparsity of 1\.1286"):
        sparsities(scores, Budget(0.9), Settings(spread=0.3, compat=True))


def test_equal_outliers_give_the_uniform_plan_even_in_compat() -> None:
    assert sparsities(made([3.0] * 4), Budget(0.6), Settings(compat=True)) == pytest.approx([0.6] * 4)


def test_all_matrices_of_a_block_get_its_sparsity() -> None:
    layers = [LayerScore(f"b{b}.m{m}", b, (2 + m, 4), {"owl": float(b)}) for b in range(2) for m in range(3)]
    got = sparsities(LayerScores("x", tuple(layers), 1), Budget(0.5))
    assert got[0] == got[1] == got[2] > got[3] == got[4] == got[5]


@pytest.mark.parametrize(("sparsity", "spread"), [(0.3, 0.04), (0.5, 0.04), (0.6, 0.06), (0.7, 0.08), (0.9, 0.08)])
def test_default_spread(sparsity: float, spread: float) -> None:
    assert owl.default_spread(sparsity) == pytest.approx(spread)
    said = owl.allocate(made([1.0, 2.0]), Budget(sparsity), Settings()).provenance
    assert (said["spread"], said["compat"], said["metric"]) == (repr(spread), "False", "owl")


def test_a_ratio_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match="b1: owl is nan"):
        sparsities(made([1.0, float("nan")]), Budget(0.5))
