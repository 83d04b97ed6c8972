"""What every file in compress/metrics must keep; the list is the folder's."""

from collections.abc import Callable
from typing import Any, Final, cast, get_args

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut import plugins
from tailcut.bitmask import Array
from tailcut.compress.metrics import (
    FROM_TEXT,
    PACKAGE,
    BlockMetric,
    Matrix,
    MatrixMetric,
    Metric,
    Needs,
    Options,
    PairMetric,
    Score,
    Spectrum,
    TailFit,
    TailMetric,
    load_metrics,
    need_text,
)
from tailcut.compress.spectra import gram_eigenvalues, significant
from tailcut.errors import InputError

METRICS: Final = load_metrics(plugins.names(PACKAGE))
Floats = npt.NDArray[np.float64]


def those(*needs: Needs) -> list[str]:
    return [name for name, metric in METRICS.items() if metric.NEEDS in needs]


every_metric = pytest.mark.parametrize("name", METRICS)
every_tail = pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if hasattr(metric, "fit")])
single = pytest.mark.parametrize("name", those("spectrum", "weight", "inputs"))
from_weights = pytest.mark.parametrize("name", those("spectrum", "weight"))
every_block = pytest.mark.parametrize("name", those("block"))
every_pairs = pytest.mark.parametrize("name", those("pairs"))

# what becomes of the value when the matrix is multiplied by c > 0; a file that is not named must not change
SCALED: Final[dict[str, Callable[[float, float, Score], float]]] = {
    "log_norm": lambda value, c, _: value + 2 * np.log10(c),
    "log_spectral_norm": lambda value, c, _: value + 2 * np.log10(c),
    "spectral_norm": lambda value, c, _: value * c * c,
    "alpha_hat": lambda value, c, alpha: value + 2 * alpha.value * np.log10(c),
    "log_alpha_norm": lambda value, c, alpha: value + 2 * alpha.value * np.log10(c),
    "magnitude": lambda value, c, _: value * c,
    "wanda": lambda value, c, _: value * c,
    "dlp": lambda value, c, _: value * c,
    "dlp_median": lambda value, c, _: value * c,
}


def unchanged(value: float, c: float, alpha: Score) -> float:
    return value


NOT_SHAPE: Final = {"log_norm", "log_spectral_norm", "spectral_norm", "alpha_hat", "log_alpha_norm", "magnitude"}


def tail(name: str) -> TailMetric:
    return cast(TailMetric, METRICS[name])


def pareto(size: int, alpha: float, seed: int = 0) -> Spectrum:
    """Draws from p(l) ~ l^-alpha, l >= 1, ascending."""
    return np.sort(1.0 + np.random.default_rng(seed).pareto(alpha - 1.0, size))


def with_tail(alpha: float, seed: int = 0, shape: tuple[int, int] = (130, 200)) -> Floats:
    """A matrix whose eigenvalues are draws from a power law, with random singular vectors."""
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.standard_normal((shape[0], shape[0])))
    right, _ = np.linalg.qr(rng.standard_normal((shape[1], shape[0])))
    return cast(Floats, left * np.sqrt(pareto(shape[0], alpha, seed)) @ right.T)


def seen(weight: Array, energy: Spectrum | None = None) -> Matrix:
    """Everything a metric may look at."""
    spectrum = significant(gram_eigenvalues(weight))
    given = np.linspace(0.5, 3.0, weight.shape[1]) if energy is None else energy
    return Matrix((weight.shape[0], weight.shape[1]), spectrum, weight, given, gram_eigenvalues)


def score(name: str, matrix: Matrix) -> Score:
    return cast(MatrixMetric, METRICS[name]).score(matrix)


def score_block(name: str, matrices: list[Matrix]) -> Score:
    return cast(BlockMetric, METRICS[name]).score_block(matrices, Options())


def outcome(work: Callable[[], float]) -> tuple[str, float]:
    """(sentence, NaN) of an InputError, else ("", value)."""
    try:
        return "", work()
    except InputError as error:
        return str(error), float("nan")


def test_the_issue_s_metrics_are_there() -> None:
    tails = {"alpha", "alpha_mid", "alpha_peak", "alpha_peak_compat", "farms", "alpha_hat", "log_alpha_norm"}
    shapes = {"stable_rank", "entropy", "mp_softrank", "rand_distance"}
    norms = {"log_norm", "log_spectral_norm", "spectral_norm", "magnitude"}
    assert tails | shapes | norms | {"wanda", "owl", "dlp", "als"} <= set(METRICS)


@every_metric
def test_needs_direction_and_clamp_are_stated(name: str) -> None:
    metric: Metric = METRICS[name]
    assert metric.NEEDS in get_args(Needs)
    assert metric.SIGN in (1, -1)
    assert metric.LARGEST > 0.0
    offered = {"block": "score_block", "pairs": "redundancy"}.get(metric.NEEDS, "score")
    assert callable(getattr(metric, offered))
    assert need_text([name]) == (metric.NEEDS in FROM_TEXT)


@single
def test_values_are_finite_and_say_the_same_again(name: str) -> None:
    matrix = seen(with_tail(2.5))
    before = [np.array(part) for part in (matrix.weight, matrix.spectrum, matrix.energy)]
    first = score(name, matrix)
    assert np.isfinite([first.value, *first.details.values()]).all()
    assert score(name, matrix) == first
    for part, copy in zip((matrix.weight, matrix.spectrum, matrix.energy), before, strict=True):
        assert np.array_equal(np.asarray(part), copy)


@single
def test_curves_ascend_from_the_least_to_the_largest(name: str) -> None:
    for curve in score(name, seen(with_tail(2.5))).curves.values():
        assert len(curve) == 1025
        assert np.all(np.diff(curve) >= 0.0)
        assert 0.0 <= curve[0] < curve[-1]


@from_weights
@pytest.mark.parametrize("shape", [(96, 160), (300, 140)])
def test_transposing_changes_nothing(name: str, shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(1).standard_t(4, shape).astype(np.float32)
    # eigenvalues agree to a few eps l_max; the fits' sensitivity to the smallest is far below 1e-6
    assert score(name, seen(np.ascontiguousarray(weight.T))).value == pytest.approx(
        score(name, seen(weight)).value, rel=1e-6
    )


@single
@pytest.mark.parametrize("factor", [2.0**-7, 2.0**5])
def test_scaling_does_what_the_file_says(name: str, factor: float) -> None:
    if name == "alpha_peak_compat":
        pytest.skip("the published bound depends on scale: that is what this metric is there for")
    weight = with_tail(2.5)
    value, alpha = score(name, seen(weight)).value, score("alpha", seen(weight))
    expected = SCALED.get(name, unchanged)(value, factor, alpha)
    # powers of two scale exactly; what is left is the rounding of logarithms
    assert score(name, seen(weight * factor)).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [name for name in those("spectrum", "weight") if name not in NOT_SHAPE])
def test_heavier_tail_scores_on_the_kept_side(name: str) -> None:
    sign = METRICS[name].SIGN
    heavy = [sign * score(name, seen(with_tail(1.7, seed))).value for seed in range(4)]
    light = [sign * score(name, seen(with_tail(6.0, seed))).value for seed in range(4)]
    assert max(heavy) < min(light)


@single
@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((5, 7)),
        np.ones((1, 1)),
        np.ones((4, 6)),
        np.eye(8),
        np.outer(np.arange(1.0, 9.0), np.ones(6)),
        np.array([[1.0, 2.0], [3.0, -4.0]]),
    ],
    ids=["zero", "one", "equal", "identity", "rank 1", "2 x 2"],
)
def test_degenerate_matrices_have_a_finite_value_or_one_sentence(name: str, weight: Floats) -> None:
    matrix = seen(weight)
    with np.errstate(all="raise"):
        said, value = outcome(lambda: score(name, matrix).value)
    assert "\n" not in said
    assert bool(said) != np.isfinite(value)


@st.composite
def small_blocks(draw: st.DrawFn) -> list[Matrix]:
    """Up to 3 matrices of up to 7 x 7 weights of few levels, of any size between 1e-6 and 1e6, with any inputs."""
    level, size = st.sampled_from([-2.0, -1.0, 0.0, 0.0, 0.5, 1.0, 3.0]), 10.0 ** draw(st.integers(-6, 6))
    matrices = []
    for _ in range(draw(st.integers(1, 3))):
        rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
        weight = np.array(draw(st.lists(level, min_size=rows * columns, max_size=rows * columns))) * size
        energy = draw(st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1e6]), min_size=columns, max_size=columns))
        matrices.append(seen(weight.reshape(rows, columns), np.array(energy)))
    return matrices


@pytest.mark.parametrize("name", those("spectrum", "weight", "inputs", "block"))
@hypothesis.settings(deadline=None, max_examples=25)  # a busy machine is no failure
@given(block=small_blocks())
def test_any_small_matrix_has_a_finite_value_or_one_sentence(name: str, block: list[Matrix]) -> None:
    before = [np.array(matrix.weight) for matrix in block]

    def value() -> float:
        return (score_block(name, block) if METRICS[name].NEEDS == "block" else score(name, block[0])).value

    with np.errstate(all="raise"):
        said, found = outcome(value)
    assert "\n" not in said
    assert bool(said) != np.isfinite(found)
    assert repr(outcome(value)) == repr((said, found))  # the same again, NaN or not
    assert all(np.array_equal(np.asarray(one.weight), copy) for one, copy in zip(block, before, strict=True))


@single
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_stored_dtypes_are_taken_as_they_are(name: str, dtype: str) -> None:
    import ml_dtypes

    kind: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    weight = (with_tail(2.5) * 0.05).astype(kind)
    exact = weight.astype(np.float64)
    assert score(name, seen(weight)).value == pytest.approx(score(name, seen(exact)).value, rel=1e-6)


@single
def test_a_part_that_was_not_measured_is_the_caller_s_mistake(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs"):
        score(name, Matrix((4, 4)))


@every_tail
def test_fit_describes_a_tail_of_its_input(name: str) -> None:
    values = pareto(300, 2.5)
    before = values.copy()
    fit = tail(name).fit(values)
    assert isinstance(fit, TailFit)
    assert not fit.failed
    assert 0 <= fit.index < values.size - 1
    assert fit.xmin == values[fit.index]
    assert 0.0 < fit.ks < 1.0
    assert tail(name).fit(values) == fit
    assert np.array_equal(values, before)


@pytest.mark.parametrize("name", [name for name in those("spectrum") if hasattr(METRICS[name], "fit")])
def test_a_tail_s_score_is_its_fit(name: str) -> None:
    matrix = seen(with_tail(2.5))
    assert matrix.spectrum is not None
    if name in ("alpha_hat", "log_alpha_norm"):
        pytest.skip("computed from alpha's fit")
    fit = tail(name).fit(matrix.spectrum)
    assert score(name, matrix) == Score(fit.alpha, {"xmin": fit.xmin, "ks": fit.ks})


@every_tail
@pytest.mark.parametrize("size", [3, 4, 5, 7, 20])
def test_all_equal_eigenvalues_fail_clearly(name: str, size: int) -> None:
    assert tail(name).fit(np.full(size, 0.7)).failed
    if METRICS[name].NEEDS == "spectrum":
        with pytest.raises(InputError, match=f"no power-law tail in its {size} eigenvalues"):
            score(name, Matrix((size, size), np.full(size, 0.7)))


@every_tail
def test_ties_do_not_break_the_fit(name: str) -> None:
    fit = tail(name).fit(np.repeat(pareto(100, 2.5), 3))
    assert not fit.failed
    assert np.isfinite([fit.alpha, fit.xmin, fit.ks]).all()


@every_tail
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
def test_impossible_spectra_are_refused(name: str, values: list[float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        tail(name).fit(np.array(values))


@every_tail
def test_range_of_twelve_decades(name: str) -> None:
    fit = tail(name).fit(np.logspace(-9, 3, 64))
    # equally spaced logs are a power law with alpha near 1
    assert not fit.failed
    assert 1.0 < fit.alpha < 2.0


def block_of(scale: float = 1.0, activations: float = 1.0) -> list[Matrix]:
    rng = np.random.default_rng(3)
    shapes = ((12, 8), (8, 12), (20, 8))
    return [
        seen(scale * rng.standard_t(3, shape), activations**2 * rng.uniform(0.1, 4.0, shape[1])) for shape in shapes
    ]


@every_block
def test_block_values_do_not_depend_on_the_order_of_matrices_or_on_who_asks(name: str) -> None:
    value = score_block(name, block_of()).value
    assert np.isfinite(value)
    assert score_block(name, block_of()).value == value
    assert score_block(name, block_of()[::-1]).value == pytest.approx(value, rel=1e-12)


@every_block
@pytest.mark.parametrize("factor", [2.0**-7, 2.0**5])
def test_block_values_scale_as_the_file_says(name: str, factor: float) -> None:
    value = score_block(name, block_of()).value
    expected = SCALED.get(name, unchanged)(value, factor, Score(0.0))
    assert score_block(name, block_of(scale=factor)).value == pytest.approx(expected, rel=1e-6)
    # |W| ||x|| is the same product whichever factor grows
    assert score_block(name, block_of(activations=factor)).value == pytest.approx(expected, rel=1e-6)


@every_block
def test_a_zero_block_has_a_finite_value(name: str) -> None:
    assert np.isfinite(score_block(name, [seen(np.zeros((3, 4)), np.zeros(4))]).value)


@every_pairs
def test_pairs_are_symmetric_one_on_the_diagonal_and_in_reach(name: str) -> None:
    metric = cast(PairMetric, METRICS[name])
    rng = np.random.default_rng(2)
    rows = [rng.standard_normal((40, width)).astype(np.float32) for width in (6, 9, 6, 30)]
    features = [metric.features(part) for part in rows]
    between = metric.redundancy(features)
    assert between.shape == (4, 4)
    assert np.array_equal(between, between.T)
    assert np.array_equal(np.diag(between), np.ones(4))
    assert np.all((between > 0.0) & (between <= 1.0))
    assert np.array_equal(metric.redundancy(features), between)


@every_pairs
def test_inputs_that_are_all_zero_are_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match="zero in all 5 sampled tokens"):
        cast(PairMetric, METRICS[name]).features(np.zeros((5, 3), np.float32))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Options(outlier=0.0), "positive multiple of the mean, got 0"),
        (lambda: Options(outlier=float("nan")), "got nan"),
        (lambda: Options(tokens=1), "at least 2 tokens, got 1"),
    ],
)
def test_options_are_checked(make: Callable[[], Options], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        make()
