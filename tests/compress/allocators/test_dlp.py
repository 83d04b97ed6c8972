"""DLP: a linear map of the block scores, larger ones cut more."""

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.allocators import Settings, dlp
from tailcut.errors import InputError


def made(values: list[float], sizes: list[int] | None = None) -> LayerScores:
    layers = [
        LayerScore(f"b{block}", block, (1, sizes[block] if sizes else 1), {"dlp": value})
        for block, value in enumerate(values)
    ]
    return LayerScores("made", tuple(layers), 1)


def sparsities(scores: LayerScores, budget: Budget, settings: Settings | None = None) -> list[float]:
    plans = dlp.allocate(scores, budget, settings or Settings()).plans
    return [plan.pattern.sparsity for plan in plans.values()]


def published(values: list[float], sparsity: float, spread: float) -> list[float]:
    """The published steps one by one: relative importance, its range stretched, its mean set to the density."""
    importance = 1.0 - np.array(values) / sum(values)
    scaled = (importance - importance.min()) / (importance.max() - importance.min()) * spread * 2
    return list(1.0 - (scaled - scaled.mean() + (1.0 - sparsity)))


def test_worked_example() -> None:
    got = sparsities(made([1.0, 3.0, 2.0, 6.0]), Budget(0.7), Settings(spread=0.15))
    assert got == pytest.approx([0.58, 0.70, 0.64, 0.88], abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_compat_equals_the_published_steps(seed: int) -> None:
    values = list(np.random.default_rng(seed).random(32) + 0.1)
    got = sparsities(made(values), Budget(0.7), Settings(compat=True))
    assert got == pytest.approx(published(values, 0.7, 0.15), abs=1e-12)
    assert sparsities(made(values), Budget(0.7)) == pytest.approx(got, abs=1e-12)  # blocks are equally large


def test_unequal_blocks_meet_the_weighted_budget() -> None:
    got = sparsities(made([1.0, 2.0, 9.0], [5, 30, 10]), Budget(0.85))
    assert np.average(got, weights=[5, 30, 10]) == pytest.approx(0.85, abs=1e-15)
    assert got[0] < got[1] < got[2]


@pytest.mark.parametrize(("sparsity", "spread"), [(0.4, 0.04), (0.5, 0.04), (0.6, 0.1), (0.7, 0.15), (0.9, 0.15)])
def test_default_spread_is_the_published_one(sparsity: float, spread: float) -> None:
    assert dlp.default_spread(sparsity) == pytest.approx(spread)


def test_compat_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="block 2: the published arithmetic"):
        sparsities(made([1.0, 1.0, 9.0]), Budget(0.9), Settings(compat=True))
