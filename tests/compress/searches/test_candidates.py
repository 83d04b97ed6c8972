"""What is chosen from: uniform first, every allocator that has its scores, no plan twice."""

import numpy as np
import pytest

from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.compress.searches._candidates import Candidate, candidates
from tailcut.compress.searches._grid import make_grid

BUDGET = Budget(0.7)


def scores(*metrics: str, curves: bool = False, blocks: int = 6) -> LayerScores:
    rng = np.random.default_rng(0)
    layers = []
    for block in range(blocks):
        for kind, shape in {"q": (6, 6), "up": (16, 6)}.items():
            names = (*metrics, "magnitude.square") if curves else metrics
            values = {name: float(rng.uniform(1.5, 6.0)) for name in names}
            power = rng.uniform(1.0, 4.0)  # how unequal the weights are
            curve = {"magnitude": tuple((np.linspace(0.0, 1.0, 9) ** power).tolist())} if curves else {}
            layers.append(LayerScore(f"layers.{block}.{kind}", block, shape, values, curve))
    return LayerScores("model", tuple(layers), 1)


def found_of(measured: LayerScores) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    return candidates(measured, make_grid(measured, BUDGET, 0.02))


def test_without_any_score_there_are_uniform_er_and_atp() -> None:
    found, missing = found_of(scores())
    allocators = {candidate.name.split()[0] for candidate in found}
    assert found[0].name == "uniform"
    assert allocators == {"uniform", "atp", "er"}  # erk and er are the same for linear layers
    assert set(missing) == {"alpha", "als", "dlp", "global", "global wanda", "lamp", "owl"}
    assert "run tailcut measure" in missing["owl"]


def test_every_score_adds_candidates() -> None:
    few, _ = found_of(scores("alpha_peak"))
    more, missing = found_of(scores("alpha_peak", "stable_rank", "owl", "dlp", curves=True))
    names = [candidate.name for candidate in more]
    assert len(more) > len(few)
    assert {"alpha", "owl", "dlp", "lamp", "global"} <= set(names)
    assert any("metric=stable_rank" in name and "granularity=matrix" in name for name in names)
    assert set(missing) == {"als", "global wanda"}


def test_defaults_come_before_settings() -> None:
    found, _ = found_of(scores("alpha_peak", "owl"))
    plain = [" " not in candidate.name for candidate in found]
    assert plain == sorted(plain, reverse=True)


def test_every_metric_is_heard_at_its_defaults_before_any_other_setting() -> None:
    found, _ = found_of(scores("alpha_peak", "stable_rank", "owl"))
    firsts = [candidate.first for candidate in found]
    assert firsts == sorted(firsts, reverse=True)
    assert {"uniform", "alpha", "owl", "alpha metric=stable_rank"} <= {one.name for one in found if one.first}
    assert not any("tau=" in one.name or "spread=" in one.name for one in found if one.first)


def test_no_plan_twice_and_all_meet_the_budget() -> None:
    measured = scores("alpha_peak", "alpha_mid", "owl", "dlp", curves=True)
    found, _ = found_of(measured)
    sizes = {layer.name: layer.parameters for layer in measured.layers}
    plans = {tuple(plan.pattern.sparsity for plan in one.allocation.plans.values()) for one in found}
    assert len(plans) == len(found)
    for candidate in found:
        assert candidate.allocation.sparsity(sizes) == pytest.approx(0.7, abs=1e-9)
