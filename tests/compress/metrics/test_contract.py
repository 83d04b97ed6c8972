"""What every file in compress/metrics must keep; the list is the folder's."""

from typing import cast

import numpy as np
import pytest

from tailcut import plugins
from tailcut.compress.metrics import Metric, Spectrum, TailFit
from tailcut.errors import InputError

METRICS = plugins.names("tailcut.compress.metrics")


@pytest.fixture(params=METRICS)
def metric(request: pytest.FixtureRequest) -> Metric:
    return cast(Metric, plugins.load("tailcut.compress.metrics", request.param))


def pareto(size: int, alpha: float, seed: int = 0) -> Spectrum:
    """Draws from p(l) ~ l^-alpha, l >= 1, ascending."""
    return np.sort(1.0 + np.random.default_rng(seed).pareto(alpha - 1.0, size))


def test_the_issue_s_metrics_are_there() -> None:
    assert {"alpha", "alpha-mid", "alpha-peak", "alpha-peak-compat"} <= set(METRICS)


def test_direction_and_clamp_are_stated(metric: Metric) -> None:
    assert metric.SIGN in (1, -1)
    assert metric.LARGEST > 1.0


def test_fit_describes_a_tail_of_its_input(metric: Metric) -> None:
    values = pareto(300, 2.5)
    before = values.copy()
    fit = metric.fit(values)
    assert isinstance(fit, TailFit)
    assert not fit.failed
    assert 0 <= fit.index < values.size - 1
    assert fit.xmin == values[fit.index]
    assert 0.0 < fit.ks < 1.0
    assert metric.fit(values) == fit
    assert np.array_equal(values, before)


def test_heavier_tail_scores_on_the_kept_side(metric: Metric) -> None:
    heavy = [metric.SIGN * metric.fit(pareto(2000, 1.8, seed)).alpha for seed in range(5)]
    light = [metric.SIGN * metric.fit(pareto(2000, 4.0, seed)).alpha for seed in range(5)]
    assert max(heavy) < min(light)


@pytest.mark.parametrize("size", [3, 4, 5, 7, 20])
def test_all_equal_eigenvalues_fail_clearly(metric: Metric, size: int) -> None:
    assert metric.fit(np.full(size, 0.7)).failed


def test_ties_do_not_break_the_fit(metric: Metric) -> None:
    fit = metric.fit(np.repeat(pareto(100, 2.5), 3))
    assert not fit.failed
    assert np.isfinite([fit.alpha, fit.xmin, fit.ks]).all()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "at least 3 eigenvalues"),
        ([1.0, 2.0], "at least 3 eigenvalues.*got 2"),
        ([0.0, 1.0, 2.0], "positive"),
        ([-1.0, 1.0, 2.0], "positive"),
        ([1.0, float("nan"), 2.0], "finite"),
        ([1.0, 2.0, float("inf")], "finite"),
        ([3.0, 2.0, 1.0], "ascending"),
    ],
)
def test_impossible_spectra_are_refused(metric: Metric, values: list[float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        metric.fit(np.array(values))


def test_range_of_twelve_decades(metric: Metric) -> None:
    fit = metric.fit(np.logspace(-9, 3, 64))
    # equally spaced logs are a power law with alpha near 1
    assert not fit.failed
    assert 1.0 < fit.alpha < 2.0
