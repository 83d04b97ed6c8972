"""Golden numbers of the metrics that are not tail fits (shared/spec/algorithms.md, sections 1.9, 5, 8 and 9)."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from tailcut.compress.metrics import (
    Matrix,
    Options,
    Spectrum,
    alpha,
    alpha_hat,
    alpha_mid,
    als,
    dlp,
    dlp_median,
    entropy,
    farms,
    farms_mid,
    log_alpha_norm,
    log_norm,
    log_spectral_norm,
    magnitude,
    mp_softrank,
    owl,
    rand_distance,
    spectral_norm,
    stable_rank,
    wanda,
)
from tailcut.compress.metrics._marchenko_pastur import edges, median
from tailcut.compress.metrics._tail import LARGEST_ALPHA
from tailcut.compress.metrics._tiles import starts, thinned, tile_spectrum
from tailcut.compress.spectra import gram_eigenvalues, significant
from tailcut.errors import InputError

Floats = npt.NDArray[np.float32]


def of_spectrum(values: list[float] | Spectrum, shape: tuple[int, int] | None = None) -> Matrix:
    spectrum = np.array(values, np.float64)
    return Matrix(shape or (spectrum.size, spectrum.size), spectrum)


def of_weight(weight: npt.NDArray[np.float64] | Floats, energy: list[float] | None = None) -> Matrix:
    norms = None if energy is None else np.array(energy, np.float64)
    spectrum = significant(gram_eigenvalues(weight))
    return Matrix((weight.shape[0], weight.shape[1]), spectrum, weight, norms, gram_eigenvalues)


def gaussian(rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def test_norms_and_stable_rank_of_a_known_spectrum() -> None:
    matrix = of_spectrum([0.5, 1.5, 8.0])
    assert stable_rank.score(matrix).value == pytest.approx(1.25, rel=1e-15)
    assert spectral_norm.score(matrix).value == 8.0
    assert log_spectral_norm.score(matrix).value == pytest.approx(math.log10(8), rel=1e-15)
    assert log_norm.score(matrix).value == pytest.approx(1.0, rel=1e-15)


def test_identity_has_full_stable_rank_and_entropy_one() -> None:
    matrix = of_weight(np.eye(24, 40))
    assert stable_rank.score(matrix).value == pytest.approx(24.0, rel=1e-12)
    assert entropy.score(matrix).value == pytest.approx(1.0, rel=1e-12)


def test_rank_one_has_stable_rank_one_and_no_entropy() -> None:
    matrix = of_weight(np.outer(np.arange(1.0, 9.0), np.arange(1.0, 6.0)))
    assert stable_rank.score(matrix).value == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(InputError, match="at least 2 eigenvalues above rounding error, got 1"):
        entropy.score(matrix)


def test_entropy_of_two_eigenvalues() -> None:
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert entropy.score(of_spectrum([1.0, 3.0])).value == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("q", [1.0, 0.5, 4096 / 11008, 0.25])
def test_stable_rank_of_random_matrices(q: float) -> None:
    rows = 400
    value = stable_rank.score(of_weight(gaussian(rows, round(rows / q)))).value / rows
    # the largest of 400 eigenvalues ends within N^(-2/3) = 2 % of the edge; the table's 1 / l+
    assert value == pytest.approx(1 / edges(q)[1], rel=0.04)


@pytest.mark.parametrize(
    ("q", "low", "high", "middle"),
    [
        (1.0, 0.0, 4.0, 0.65278),
        (0.5, 0.08579, 2.91421, 0.83047),
        (4096 / 11008, 0.15210, 2.59208, 0.87445),
        (0.25, 0.25, 2.25, 0.91600),
    ],
)
def test_marchenko_pastur_law(q: float, low: float, high: float, middle: float) -> None:
    assert edges(q) == pytest.approx((low, high), abs=1e-5)
    assert median(q) == pytest.approx(middle, abs=1e-5)


@pytest.mark.parametrize("shape", [(300, 300), (200, 500), (500, 200)])
def test_soft_rank_of_a_random_matrix_is_one(shape: tuple[int, int]) -> None:
    found = mp_softrank.score(of_weight(gaussian(*shape)))
    # edge and largest eigenvalue fluctuate by N^(-2/3), 2 to 3 %
    assert found.value == pytest.approx(1.0, abs=0.06)
    assert found.details["spikes"] < 0.02
    assert found.details["bulk_max"] == pytest.approx(max(shape) * edges(min(shape) / max(shape))[1], rel=0.05)


def test_soft_rank_sees_a_planted_spike_through_the_bulk() -> None:
    weight = gaussian(200, 400)
    left, right = np.ones(200) / math.sqrt(200), np.ones(400) / math.sqrt(400)
    found = mp_softrank.score(of_weight(weight + 100.0 * np.outer(left, right)))
    # spiked model: l / n = (1 + t)(1 + q / t) with t = 100^2 / n = 25; edge (1 + sqrt q)^2
    expected = edges(0.5)[1] / (26 * (1 + 0.5 / 25))
    assert found.value == pytest.approx(expected, rel=0.06)
    assert found.details["spikes"] == pytest.approx(1 / 200)


def test_soft_rank_needs_half_of_the_spectrum() -> None:
    low_rank = gaussian(40, 19) @ gaussian(19, 40)
    with pytest.raises(InputError, match="at least 21 eigenvalues above rounding error, got 19"):
        mp_softrank.score(of_weight(low_rank))


def test_alpha_hat_and_alpha_norm_of_the_quantile_pareto() -> None:
    values = (1 - (np.arange(1000) + 0.5) / 1000) ** (-1 / (2 - 1))
    fitted = alpha.fit(values).alpha
    assert fitted == pytest.approx(2.000847, abs=1e-6)
    assert alpha_hat.score(of_spectrum(values)).value == pytest.approx(2.000847 * math.log10(2000), abs=1e-5)
    assert log_alpha_norm.score(of_spectrum(values)).value == pytest.approx(
        math.log10((values**fitted).sum()), rel=1e-12
    )


def test_alpha_norm_does_not_overflow_and_alpha_is_clamped() -> None:
    values = np.sort(1 + np.random.default_rng(0).pareto(30, 500)) * 1e200
    assert alpha.fit(values).alpha > LARGEST_ALPHA
    expected = LARGEST_ALPHA * math.log10(values[-1])
    assert alpha_hat.score(of_spectrum(values)).value == pytest.approx(expected, rel=1e-12)
    # log10 of a sum of 500 terms of which the last is the largest
    assert expected < log_alpha_norm.score(of_spectrum(values)).value < expected + math.log10(500)


def test_jensen_shannon_distance_by_hand() -> None:
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    assert rand_distance.jensen_shannon(p, q) == pytest.approx(0.464501, abs=1e-6)
    assert rand_distance.jensen_shannon(q, q[::-1].copy()) == pytest.approx(math.sqrt(math.log(2)), rel=1e-12)
    assert rand_distance.jensen_shannon(p, p) == 0.0


def test_a_random_matrix_is_near_and_a_structured_one_far_from_its_shuffled_self() -> None:
    noise = gaussian(100, 160)
    near = rand_distance.score(of_weight(noise)).value
    # eigenvalues of two samples differ by some 1 / N of their size
    assert 0.0 < near < 0.02
    # one of equal signs everywhere would survive any shuffling
    structure = np.outer(np.tile([1.0, -1.0], 50), np.ones(160))
    assert rand_distance.score(of_weight(noise + 3.0 * structure)).value > 5 * near


def test_shuffling_keeps_the_weights_and_forgets_their_order() -> None:
    weight = gaussian(7, 5).astype(np.float32)
    mixed = rand_distance.shuffled(weight)
    assert mixed.shape == (5, 7)
    assert np.array_equal(np.sort(mixed, axis=None), np.sort(weight, axis=None))
    assert np.array_equal(rand_distance.shuffled(weight[::-1].T), mixed)


def test_magnitude_mean_and_quantiles() -> None:
    weight = np.arange(-1024.0, 1.0).reshape(25, 41)
    found = magnitude.score(Matrix((25, 41), weight=weight))
    assert found.value == pytest.approx(512.0)
    assert found.details == {"square": pytest.approx(1024 * 1025 * 2049 / 6 / 1025)}  # LAMP reads it
    assert found.curves["magnitude"] == tuple(float(i) for i in range(1025))


def test_quantiles_are_interpolated_as_numpy_does() -> None:
    weight = gaussian(9, 13).astype(np.float32)
    found = magnitude.score(Matrix((9, 13), weight=weight)).curves["magnitude"]
    expected = np.quantile(np.abs(weight.astype(np.float64)), np.arange(1025) / 1024)
    # the curve is rounded to float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_wanda_weighs_by_the_norms_of_inputs() -> None:
    matrix = of_weight(np.array([[1.0, -2.0], [0.0, 3.0]]), [4.0, 9.0])  # norms 2 and 3
    found = wanda.score(matrix)
    assert found.value == pytest.approx((2 + 6 + 0 + 9) / 4, rel=1e-7)
    curve = found.curves["wanda"]
    assert (curve[0], curve[-1]) == (0.0, 9.0)
    assert curve[512] == pytest.approx(4.0)  # the median of 0, 2, 6, 9


def test_owl_counts_what_passes_a_multiple_of_the_block_s_mean() -> None:
    # importances 1 nine times and 91 once, in two matrices: mean 10, limit 50
    first = of_weight(np.ones((1, 4)), [1.0] * 4)
    second = of_weight(np.array([[1.0, 1.0, 1.0, 1.0, 1.0, 45.5]]), [1.0] * 5 + [4.0])
    assert owl.score_block([first, second], Options()).value == pytest.approx(10.0)
    assert owl.score_block([first, second], Options(outlier=9.2)).value == 0.0
    # on its own the second matrix has the mean 16 and the limit 80
    assert owl.score_block([second], Options()).value == pytest.approx(100 / 6)


def test_owl_s_limit_is_strict() -> None:
    # mean x / 5, limit exactly x
    matrix = of_weight(np.array([[0.0, 0.0, 0.0, 0.0, 0.3]]).astype(np.float32), [1.0] * 5)
    assert owl.score_block([matrix], Options()).value == 0.0
    assert owl.score_block([matrix], Options(outlier=4.99)).value == pytest.approx(20.0)


def test_dlp_is_the_block_s_mean_and_its_variant_the_median() -> None:
    matrices = [of_weight(np.array([[1.0, -2.0]]), [4.0, 9.0]), of_weight(np.array([[3.0], [5.0]]), [1.0])]
    assert dlp.score_block(matrices, Options()).value == pytest.approx((2 + 6 + 3 + 5) / 4, rel=1e-7)
    assert dlp_median.score_block(matrices, Options()).value == pytest.approx(3.0)  # the lower of 3 and 5


def gram(rows: npt.NDArray[np.float64]) -> Floats:
    return (rows @ rows.T).astype(np.float32)


@pytest.mark.parametrize(("tokens", "width", "expected"), [(64, 16, 0.1975), (128, 128, 0.498)])
def test_redundancy_of_independent_gaussians(tokens: int, width: int, expected: float) -> None:
    """||X^T Y||^2 / (||X^T X|| ||Y^T Y||) = d / (n + d + 1) for independent Gaussians, before rows are normalised."""
    assert expected == pytest.approx(width / (tokens + width + 1), abs=5e-4)
    found = [
        als.cosines([gram(gaussian(tokens, width, 2 * seed)), gram(gaussian(tokens, width, 2 * seed + 1))])[0, 1]
        for seed in range(20)
    ]
    # the formula divides expectations, the draws' own norms differ by 12 %: their mean ratio lies 1 to 3 % above
    assert np.mean(found) == pytest.approx(expected, rel=0.04)


def test_redundancy_equals_the_paper_s_formula() -> None:
    x, y = gaussian(30, 5, 1), gaussian(30, 8, 2)
    expected = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert als.cosines([gram(x), gram(y)])[0, 1] == pytest.approx(expected, rel=1e-5)


def test_rotated_and_scaled_inputs_are_redundant() -> None:
    rows = gaussian(60, 12)
    turn, _ = np.linalg.qr(gaussian(12, 12, 1))
    features = [als.features(part.astype(np.float32)) for part in (rows, rows @ turn, 7.0 * rows)]
    np.testing.assert_allclose(als.redundancy(features), np.ones((3, 3)), atol=1e-5)


def test_normalised_rows_have_the_documented_floor() -> None:
    found = [
        als.redundancy([als.features(gaussian(64, 16, seed + k).astype(np.float32)) for k in (0, 100)])[0, 1]
        for seed in range(20)
    ]
    assert np.mean(found) == pytest.approx(16 / (64 + 16 - 1), rel=0.02)


def test_one_huge_token_does_not_decide() -> None:
    x, y = gaussian(50, 10, 1), gaussian(50, 10, 2)
    plain = als.redundancy([als.features(part.astype(np.float32)) for part in (x, y)])[0, 1]
    x[0] *= 1e4
    y[0] *= 1e4
    loud = als.redundancy([als.features(part.astype(np.float32)) for part in (x, y)])[0, 1]
    assert loud == pytest.approx(plain, rel=1e-5)
    assert als.cosines([gram(x), gram(y)])[0, 1] > 0.99


def test_shared_inputs_are_compared_once() -> None:
    first, second = (als.features(gaussian(20, 4, seed).astype(np.float32)) for seed in (1, 2))
    between = als.redundancy([first, first, second, first])
    assert between[0, 1] == between[0, 3] == 1.0
    assert between[0, 2] == between[1, 2] == between[3, 2] < 1.0


@pytest.mark.parametrize("shape", [(512, 512), (512, 1408), (1408, 512)])
def test_tiles_take_the_bias_of_shape_away(shape: tuple[int, int]) -> None:
    matrix = of_weight(gaussian(*shape).astype(np.float32))
    # the limit for square random matrices is 2.1217; 3 % as for whole ones
    assert farms_mid.score(matrix).value == pytest.approx(2.1217, rel=0.03)
    raw = alpha_mid.score(matrix).value
    assert raw == pytest.approx(2.1217 if shape[0] == shape[1] else 3.03, rel=0.04)


def test_farms_fits_the_pooled_tiles() -> None:
    weight = np.random.default_rng(2).standard_t(3, (300, 150))
    tiles = [weight[row : row + 128, column : column + 128] for row in (0, 172) for column in (0,)]
    pooled = np.sort(np.concatenate([gram_eigenvalues(tile) for tile in tiles]))
    np.testing.assert_allclose(tile_spectrum(weight), pooled, rtol=1e-9)
    found = farms.score(Matrix((300, 150), weight=weight))
    assert set(found.details) == {"ks"}
    assert 1.0 < found.value < 12.0


def test_tiles_cover_a_matrix_from_end_to_end() -> None:
    assert starts(128, 128).tolist() == [0]
    assert starts(300, 128).tolist() == [0, 172]
    assert starts(11008, 128).size == 16
    assert (starts(11008, 128)[0], starts(11008, 128)[-1]) == (0, 11008 - 128)
    assert np.all(np.diff(starts(576, 128)) >= 128)


def test_matrices_smaller_than_a_tile_are_one_square() -> None:
    weight = gaussian(6, 20)
    expected = np.sort(np.concatenate([gram_eigenvalues(weight[:, c : c + 6]) for c in (0, 7, 14)]))
    np.testing.assert_allclose(tile_spectrum(weight), expected, rtol=1e-9)


def test_thinning_keeps_the_fit() -> None:
    values = np.sort(1 + np.random.default_rng(1).pareto(1.6, 32768))
    thin = thinned(values, 4096)
    assert thin.size == 4096
    assert (thin[0], thin[-1]) == (values[0], values[-1])
    # half the spread of a Hill estimate from 2048 values, (alpha - 1) / sqrt(n) = 3.5 %
    assert alpha_mid.fit(thin).alpha == pytest.approx(alpha_mid.fit(values).alpha, rel=0.01)


def test_zero_tiles_are_one_sentence() -> None:
    with pytest.raises(InputError, match="tiles are zero"):
        farms.score(Matrix((4, 4), weight=np.zeros((4, 4))))
