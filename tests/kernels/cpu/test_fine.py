"""Activations in two int8 parts: closer to exact activations by orders of magnitude, on every format and instruction set."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tailcut.bitmask import pack
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix, Format, Isa

Array = npt.NDArray[Any]
pytestmark = pytest.mark.skipif(library.find() is None, reason=str(library.problem()))
HERE = library.isas() if library.find() else ()
FORMATS: tuple[tuple[Isa, Format], ...] = (
    ("portable", "bitmask"),
    ("avx2", "bitmask"),
    ("avx2", "slots"),
    ("avx512", "bitmask"),
    ("avx512", "slots"),
    ("amx", "bitmask"),
    ("amx", "slots"),
)


def matrix(rows: int, columns: int, bits: int, isa: Isa, form: Format) -> tuple[CpuMatrix, Array]:
    rng = np.random.default_rng(3)
    q = rng.integers(-127, 128, (rows, columns)).astype(np.int8) * (rng.random((rows, columns)) < 0.4)
    scales = rng.uniform(0.001, 0.01, rows).astype(np.float32)
    packed = pack(q)
    made = CpuMatrix(
        packed.values, q.shape, mask=packed.mask, scales=scales, isa=isa, format=form, activation_bits=bits
    )
    return made, q.astype(np.float64) * scales[:, None]


@pytest.mark.parametrize(("isa", "form"), FORMATS)
@pytest.mark.parametrize("m", [1, 2, 5, 17])
@pytest.mark.parametrize("columns", [1, 64, 130, 576])
def test_two_parts_are_far_closer_than_one(isa: Isa, form: Format, m: int, columns: int) -> None:
    if isa not in HERE:
        pytest.skip(f"this processor does not run {isa}")
    x = np.random.default_rng(m).standard_normal((m, columns)).astype(np.float32)
    made, weights = matrix(33, columns, 16, isa, form)
    exact = x.astype(np.float64) @ weights.T
    size = np.abs(x).astype(np.float64) @ np.abs(weights).T
    # the rest of the first rounding is at most 1/254 of a group's largest activation, and is rounded to 1/254 of that
    # again: 1.6e-5 of it at most a column, where one part alone has 4e-3; float32 sums add 1e-6 of the absolute terms
    bound = (np.abs(x).max() / 254**2 * np.abs(weights).sum(axis=1))[None] + 2e-6 * size
    assert np.all(np.abs(made.matmul(x) - exact) <= bound)


def test_one_part_would_not_pass() -> None:
    x = np.random.default_rng(0).standard_normal((1, 576)).astype(np.float32)
    made, weights = matrix(33, 576, 8, "auto", "auto")
    error = np.abs(made.matmul(x) - x.astype(np.float64) @ weights.T)
    assert np.any(error > np.abs(x).max() / 254**2 * np.abs(weights).sum(axis=1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_activations_spoil_their_row_only(bad: float) -> None:
    x = np.random.default_rng(0).standard_normal((3, 130)).astype(np.float32)
    x[1, 129] = bad
    y = matrix(17, 130, 16, "auto", "auto")[0].matmul(x)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


def test_zeros_and_denormals_stay_finite() -> None:
    x = np.zeros((2, 130), np.float32)
    x[1] = 1e-42
    y = matrix(17, 130, 16, "auto", "auto")[0].matmul(x)
    assert np.all(y[0] == 0)
    assert np.isfinite(y[1]).all()


def test_threads_do_not_change_a_bit() -> None:
    x = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32)
    made, _ = matrix(1000, 1000, 16, "auto", "auto")
    np.testing.assert_array_equal(made.matmul(x, threads=1), made.matmul(x, threads=3))
