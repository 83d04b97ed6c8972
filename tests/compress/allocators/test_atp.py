"""ATP's arithmetic progression against shared/spec/algorithms.md, section 9, and the steps it tries."""

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings, atp
from tailcut.errors import InputError


def made(blocks: int, sizes: list[int] | None = None) -> LayerScores:
    layers = [LayerScore(f"b{b}", b, (1, sizes[b] if sizes else 1), {}) for b in range(blocks)]
    return LayerScores("made", tuple(layers), 1)


def sparsities(scores: LayerScores, budget: Budget, settings: Settings | None = None) -> list[float]:
    plans = atp.allocate(scores, budget, settings or Settings()).plans
    return [plan.pattern.sparsity for plan in plans.values()]


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.002, 0.01, 0.018])
def test_equation_3(beta: float, compat: bool) -> None:
    expected = [0.7 - beta * 31 / 2 + beta * (i - 1) for i in range(1, 33)]
    got = sparsities(made(32), Budget(0.7, cap=1.0), Settings(beta=beta, compat=compat))
    assert got == pytest.approx(expected, abs=1e-12)


def test_the_largest_step_lets_the_last_block_go_wholly() -> None:
    assert atp.largest_beta(32, 0.7) == pytest.approx(0.01935, abs=5e-6)  # printed to 5 decimals
    # the specification prints .0075 for 80 blocks, one third of it a third try: 0.6 / 79
    assert atp.largest_beta(80, 0.7) == pytest.approx(0.6 / 79)
    got = sparsities(made(32), Budget(0.7, cap=1.0), Settings(beta=atp.largest_beta(32, 0.7)))
    assert (got[0], got[-1]) == pytest.approx((0.4, 1.0))


@pytest.mark.parametrize(("blocks", "tries"), [(32, 9), (80, 3), (1, 0)])
def test_candidates_are_those_the_authors_try(blocks: int, tries: int) -> None:
    steps = atp.candidates(blocks, 0.7)
    assert len(steps) == tries
    assert list(steps) == pytest.approx([0.002 * (n + 1) for n in range(tries)])


def test_every_candidate_is_possible_as_published() -> None:
    for blocks, sparsity in ((12, 0.5), (30, 0.6), (32, 0.7), (61, 0.35)):
        for beta in atp.candidates(blocks, sparsity, 0.001):
            got = sparsities(made(blocks), Budget(sparsity, cap=1.0), Settings(beta=beta, compat=True))
            assert np.mean(got) == pytest.approx(sparsity, abs=1e-12)


def test_a_step_that_leads_out_of_range_is_water_filled_and_refused_in_compat() -> None:
    got = sparsities(made(5), Budget(0.7), Settings(beta=0.3))
    assert got[-2:] == [0.99, 0.99]
    assert np.mean(got) == pytest.approx(0.7, abs=1e-15)
    with pytest.raises(InputError, match=r"block 3: the published arithmetic gives a sparsity of 1\.0000, outside"):
        sparsities(made(5), Budget(0.7), Settings(beta=0.3, compat=True))


def test_unequal_blocks_keep_the_steps_and_the_weighted_budget() -> None:
    sizes = [4, 9, 1, 30]
    got = sparsities(made(4, sizes), Budget(0.6), Settings(beta=0.05))
    assert np.diff(got) == pytest.approx([0.05] * 3)
    assert np.average(got, weights=sizes) == pytest.approx(0.6, abs=1e-15)


def test_depth_is_the_order_of_blocks_whatever_their_numbers() -> None:
    layers = tuple(LayerScore(f"b{b}", b, (1, 1), {}) for b in (3, 10, 7))
    got = sparsities(LayerScores("x", layers, 3), Budget(0.5), Settings(beta=0.1))
    assert got == pytest.approx([0.4, 0.6, 0.5])


@pytest.mark.parametrize(("sparsity", "width"), [(0.5, 0.08), (0.7, 0.3), (0.9, 0.2)])
def test_the_default_is_as_wide_as_dlp_or_as_wide_as_can_be(sparsity: float, width: float) -> None:
    assert atp.default_beta(32, sparsity) * 31 == pytest.approx(width)
    assert atp.default_beta(1, sparsity) == 0.0
