"""Round to nearest: the bound it promises, and matrices it must survive."""

from typing import Any

import numpy as np
import pytest

from tailcut.errors import InputError
from tailcut.export.forms import encode
from tailcut.export.quantise import check_precision, quantise, round_trip, to_half
from tailcut.quantised import GROUP, dequantise, spread


def matrix(rows: int = 9, columns: int = 300, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, columns)) * rng.lognormal(0, 2, (rows, 1))).astype(np.float32)


@pytest.mark.parametrize(("precision", "largest"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("columns", [1, 7, GROUP, GROUP + 1, 300])
def test_no_weight_moves_more_than_half_a_step(precision: Any, largest: int, columns: int) -> None:
    weight = matrix(columns=columns)
    q, scales = quantise(weight, precision)
    assert (q.min() >= -largest, q.max() <= largest) == (True, True)
    assert scales.shape == ((9,) if precision == "int8" else (9, -(-columns // GROUP)))
    # half a step, and the rounding of w / scale and of q * scale in float32
    bound = spread(scales, columns) * 0.5 + 4 * np.finfo(np.float32).eps * np.abs(weight)
    assert (np.abs(dequantise(q, scales) - weight) <= bound).all()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_largest_weight_of_a_scale_is_kept(precision: Any) -> None:
    weight = matrix()
    back = round_trip(weight, precision)
    place = np.abs(weight).argmax(axis=1)
    rows = np.arange(len(weight))
    np.testing.assert_allclose(back[rows, place], weight[rows, place], rtol=2e-7)  # w / 127 * 127: two roundings


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8", "int4"])
def test_pruned_zeros_and_zero_rows_stay_zero(precision: Any) -> None:
    weight = matrix()
    weight[:, ::3] = 0
    weight[4] = 0
    weight[5, :GROUP] = 0
    back = round_trip(weight, precision)
    assert np.isfinite(back).all()
    assert not back[weight == 0].any()


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_subnormal_rows_count_as_zero_and_huge_ones_survive(precision: Any) -> None:
    weight = np.zeros((2, 5), np.float32)
    weight[0], weight[1] = 1e-44, 1e38
    back = round_trip(weight, precision)
    assert not back[0].any()
    np.testing.assert_allclose(back[1], weight[1], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused(bad: float) -> None:
    weight = matrix()
    weight[1, 2] = bad
    with pytest.raises(InputError, match="NaN and infinite weights cannot be quantised"):
        quantise(weight, "int8")


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"float16: a weight of size 1e\+05 does not fit; use bfloat16"):
        to_half(np.full((1, 1), 1e5, np.float32), "float16")
    assert to_half(np.full((1, 1), 1e5, np.float32), "bfloat16").dtype.name == "bfloat16"


def test_unknown_precision() -> None:
    with pytest.raises(
        InputError, match="unknown weights 'int3'; choose one of float32, float16, bfloat16, int8, int4"
    ):
        check_precision("int3")


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_loss_is_counted_by_row(precision: Any) -> None:
    weight = matrix()
    weight[:, ::2] = 0
    _, loss = encode(weight, "bitmask", precision)
    back = round_trip(weight, precision)
    assert loss.kept.tolist() == np.count_nonzero(back, axis=1).tolist()
    # both float64 sums of 300 squares of float32 numbers
    np.testing.assert_allclose(loss.error, ((back - weight).astype(np.float64) ** 2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(loss.norm, (weight.astype(np.float64) ** 2).sum(axis=1), rtol=1e-6)
