"""Golden numbers and limits of the power-law fits (shared/spec/algorithms.md, section 9)."""

import math

import numpy as np
import pytest

from tailcut.compress.metrics import Spectrum, alpha, alpha_mid, alpha_peak, alpha_peak_compat
from tailcut.compress.metrics._tail import histogram_peak
from tailcut.compress.spectra import gram_eigenvalues, significant

LOG10_BUG = np.array(
    [0.0032, 0.0162, 0.0171, 0.0176, 0.0193, 0.0918, 0.1322, 0.174, 0.5361, 0.6414, 0.642, 0.6427, 0.8583]
)
SEARCHES = (alpha, alpha_peak, alpha_peak_compat)
ALL = (*SEARCHES, alpha_mid)


def naive_ks(values: Spectrum, i: int) -> tuple[float, float]:
    """(alpha, D) of the tail beginning at i, term by term as the published loop does it."""
    n = len(values) - i
    excess = math.fsum(math.log(values[j] / values[i]) for j in range(i, len(values)))
    if excess == 0.0:
        return math.inf, (n - 1) / n
    exponent = 1.0 + n / excess
    return exponent, max(
        abs(1.0 - (values[j] / values[i]) ** (1.0 - exponent) - (j - i) / n) for j in range(i, len(values))
    )


def naive_search(values: Spectrum, low: float, high: float, *, infinite: bool) -> tuple[float, float, int]:
    """(alpha, D, index) of the published double loop: D starts at 1, strict <, the last eigenvalue is skipped."""
    best = (0.0, 1.0, 0)
    for i in range(len(values) - 1):
        if values[i] < low:
            continue
        if values[i] > high:
            break
        exponent, distance = naive_ks(values, i)
        if (infinite or math.isfinite(exponent)) and exponent > 1.0 and distance < best[1]:
            best = (exponent, distance, i)
    return best


def spectra() -> list[Spectrum]:
    """Heavy, light, random-matrix, tied and tiny spectra."""
    rng = np.random.default_rng(7)
    heavy = [np.sort(1e-3 * (1 + rng.pareto(a, n))) for a, n in ((0.8, 50), (1.5, 400), (3.0, 900))]
    matrix = [significant(gram_eigenvalues(rng.standard_normal(shape) * 0.02)) for shape in ((60, 60), (80, 200))]
    tied = [np.repeat(np.sort(rng.lognormal(0, 2, 40)), 2), np.array([1.0, 2.0, 2.0]), np.array([1.0, 1.0, 3.0])]
    return [*heavy, *matrix, *tied, *(LOG10_BUG * c for c in (1.0, 100.0))]


@pytest.mark.parametrize("values", spectra())
def test_vectorised_search_equals_the_double_loop(values: Spectrum) -> None:
    peak = histogram_peak(values)
    bounds = {alpha: (0.0, math.inf), alpha_peak: (0.95 * peak, 1.5 * peak)}
    bounds[alpha_peak_compat] = (math.log10(0.95 * peak), 1.5 * peak)
    for metric in SEARCHES:
        exponent, distance, index = naive_search(values, *bounds[metric], infinite=metric is alpha_peak_compat)
        got = metric.fit(values)
        assert got.index == index
        # sums of up to 900 logarithms in another order
        assert got.alpha == pytest.approx(exponent, rel=1e-9)
        assert got.ks == pytest.approx(distance, rel=1e-9)


def test_chunks_do_not_change_the_search() -> None:
    values = np.sort(1 + np.random.default_rng(0).pareto(1.7, 1500))  # several chunks of candidates
    exponent, distance, index = naive_search(values[-300:], 0.0, math.inf, infinite=False)
    assert alpha.fit(values[-300:]).index == index
    full = alpha.fit(values)
    for other in range(0, 1499, 97):
        assert naive_ks(values, other)[1] >= full.ks - 1e-12
    assert naive_ks(values, full.index) == pytest.approx((full.alpha, full.ks), rel=1e-9)
    assert distance < 1.0 < exponent


def test_geometric_spectrum() -> None:
    fit = alpha_mid.fit(2.0 ** np.arange(10))
    assert fit.alpha == pytest.approx(1.7213475204, abs=1e-10)
    assert (fit.index, fit.xmin) == (5, 32.0)


@pytest.mark.parametrize("ratio", [1.1, 2.0, 5.0])
@pytest.mark.parametrize("size", [10, 50])
def test_geometric_spectrum_in_general(ratio: float, size: int) -> None:
    expected = 1 + 2 / ((size / 2 - 1) * math.log(ratio))
    assert alpha_mid.fit(ratio ** np.arange(size, dtype=float)).alpha == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("true", "mid", "full"), [(2, 2.001696, 2.000847), (3, 3.003393, 3.001695), (4, 4.005089, 4.002542)]
)
def test_quantile_pareto(true: int, mid: float, full: float) -> None:
    values = (1 - (np.arange(1000) + 0.5) / 1000) ** (-1 / (true - 1))
    assert alpha_mid.fit(values).alpha == pytest.approx(mid, abs=1e-6)
    fit = alpha.fit(values)
    assert fit.alpha == pytest.approx(full, abs=1e-6)
    assert fit.ks == pytest.approx(0.000673, abs=1e-6)
    assert fit.index == 0


@pytest.mark.parametrize("true", [2.0, 3.0])
def test_random_pareto_has_the_hill_estimator_s_moments(true: float) -> None:
    size, draws = 1000, 400
    rng = np.random.default_rng(11)
    estimates = [alpha_mid.fit(np.sort(1 + rng.pareto(true - 1, size))).alpha for _ in range(draws)]
    n = size // 2
    mean, spread = 1 + (true - 1) * n / (n - 2), (true - 1) / math.sqrt(n - 1)
    # 4 standard errors of a mean, and of a standard deviation, over 400 draws
    assert np.mean(estimates) == pytest.approx(mean, abs=4 * spread / math.sqrt(draws))
    assert np.std(estimates) == pytest.approx(spread, rel=4 / math.sqrt(2 * draws))


def test_log10_bug_golden_case() -> None:
    assert histogram_peak(LOG10_BUG) == pytest.approx(0.6136628, abs=1e-7)
    published = alpha_peak_compat.fit(LOG10_BUG)
    assert (published.alpha, published.ks) == pytest.approx((1.4794604, 0.2313461), abs=1e-7)
    assert published.index == 1
    for values in (LOG10_BUG, 100 * LOG10_BUG):
        correct = alpha_peak.fit(values)
        assert (correct.alpha, correct.ks) == pytest.approx((11.2931795, 0.3221790), abs=1e-7)
        assert correct.index == 10
    assert alpha_peak_compat.fit(100 * LOG10_BUG).alpha == pytest.approx(11.2931795, abs=1e-7)


def test_published_rule_keeps_a_tail_of_ties() -> None:
    # both of the last two tie: alpha is infinite there, with D = 1/2, and the published argmin may take it
    values = np.array([1.0, 1.0])
    values = np.concatenate([values, [1.0]])
    assert alpha_peak_compat.fit(values).alpha == math.inf
    assert alpha_peak_compat.fit(values).ks == pytest.approx(0.5)
    assert alpha_peak.fit(values).alpha == 0.0


@pytest.fixture(scope="module")
def heavy_matrix() -> Spectrum:
    """A matrix [96, 160] whose spectrum has a power-law tail."""
    rng = np.random.default_rng(5)
    left, _ = np.linalg.qr(rng.standard_normal((96, 96)))
    right, _ = np.linalg.qr(rng.standard_normal((160, 96)))
    return left * np.sqrt(1 + rng.pareto(1.5, 96)) @ right.T


def fits(matrix: Spectrum) -> list[float]:
    spectrum = significant(gram_eigenvalues(matrix))
    return [metric.fit(spectrum).alpha for metric in ALL]


def test_transposing_changes_nothing(heavy_matrix: Spectrum) -> None:
    # eigenvalues agree to a few eps * l_max; alpha's sensitivity to the smallest is far below 1e-8
    assert fits(heavy_matrix.T) == pytest.approx(fits(heavy_matrix), rel=1e-8)


def test_orthogonal_multiplication_changes_nothing(heavy_matrix: Spectrum) -> None:
    rng = np.random.default_rng(6)
    left, _ = np.linalg.qr(rng.standard_normal((96, 96)))
    right, _ = np.linalg.qr(rng.standard_normal((160, 160)))
    assert fits(left @ heavy_matrix @ right) == pytest.approx(fits(heavy_matrix), rel=1e-8)


@pytest.mark.parametrize("factor", [1e-3, 0.3, 7.0, 1e4])
def test_scaling_changes_nothing_but_the_published_rule(heavy_matrix: Spectrum, factor: float) -> None:
    spectrum = significant(gram_eigenvalues(heavy_matrix))
    for metric in (alpha, alpha_mid, alpha_peak):
        assert metric.fit(spectrum * factor).alpha == pytest.approx(metric.fit(spectrum).alpha, rel=1e-9)


@pytest.mark.parametrize(("q", "limit"), [(1.0, 2.1217), (0.5, 2.7058), (4096 / 11008, 2.9992), (0.25, 3.4546)])
def test_marchenko_pastur_limit_of_alpha_mid(q: float, limit: float) -> None:
    rng = np.random.default_rng(3)
    rows = 400
    spectrum = significant(gram_eigenvalues(rng.standard_normal((rows, round(rows / q)))))
    # 3 %: what 400 eigenvalues leave of finite-size error
    assert alpha_mid.fit(spectrum).alpha == pytest.approx(limit, rel=0.03)


@pytest.mark.parametrize(
    ("q", "low", "high", "median"),
    [(1.0, 0.0, 4.0, 0.65278), (0.5, 0.08579, 2.91421, 0.83047), (0.25, 0.25, 2.25, 0.916)],
)
def test_marchenko_pastur_edges_and_median(q: float, low: float, high: float, median: float) -> None:
    rows = 400
    columns = round(rows / q)
    values = gram_eigenvalues(np.random.default_rng(4).standard_normal((rows, columns))) / columns
    # the edges move by about N^(-2/3) = 0.018, the median by 1 / N
    assert values[0] == pytest.approx(low, abs=0.05)
    assert values[-1] == pytest.approx(high, abs=0.1)
    assert np.median(values) == pytest.approx(median, rel=0.02)
