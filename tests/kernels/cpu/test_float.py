"""Float matrices in every format and on every instruction set of this processor, against float64."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from tailcut.bitmask import pack
from tailcut.errors import InputError
from tailcut.kernels.library import CpuMatrix, isas

Array = npt.NDArray[Any]
KINDS: Final = (np.float32, np.float16, ml_dtypes.bfloat16)
FORMATS: Final = ("dense", "bitmask", "index")
SHAPES: Final = ((1, 1), (1, 64), (15, 63), (16, 65), (17, 129), (33, 257), (50, 1027), (3, 2100), (64, 8))
ROWS: Final = (1, 2, 3, 4, 5, 7, 16, 50, 65)  # of x: every path, and what is left over of a tile or a vector


def weights(rng: np.random.Generator, shape: tuple[int, int], density: float, kind: Any) -> Array:
    dense = rng.standard_normal(shape) * (rng.random(shape) < density)
    dense[rng.random(shape[0]) < 0.1] = 0  # empty rows
    dense[rng.random(shape[0]) < 0.05] = 0.5  # full rows
    return np.asarray(dense.astype(kind))


def matrices(dense: Array) -> Iterator[tuple[str, CpuMatrix]]:
    """The matrix in every format on every instruction set here."""
    packed = pack(dense)
    for isa, form in product(isas(), FORMATS):
        yield f"{isa} {form}", CpuMatrix(packed.values, packed.shape, mask=packed.mask, isa=isa, format=form)  # type: ignore[arg-type]


def assert_close(found: Array, x: Array, dense: Array, label: str) -> None:
    wide = dense.astype(np.float64)
    want = x.astype(np.float64) @ wide.T
    # float32 sums of n products: n eps sum|x w| (Higham 3.1); products below the normal numbers lose 2^-149 each, and
    # AMX takes bfloat16 parts of x below 2^-126 for 0
    bound = (x.shape[1] + 8) * (2.0**-24 * (np.abs(x).astype(np.float64) @ np.abs(wide).T) + 1e-44)
    if label.startswith("amx"):
        bound = bound + 2.0**-124 * (np.abs(wide).sum(axis=1) + x.shape[1])
    assert (np.abs(found - want) <= bound).all(), label


@pytest.fixture(autouse=True)
def _library(kernel_library: Path) -> None:
    """Every test here needs it."""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_products_agree_with_float64(kind: Any, density: float) -> None:
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        dense = weights(rng, shape, density, kind)
        for label, matrix in matrices(dense):
            for m in ROWS:
                x = rng.standard_normal((m, shape[1])).astype(np.float32)
                assert_close(matrix.matmul(x), x, dense, f"{label} {shape} m={m}")


@pytest.mark.parametrize("m", [1, 2, 5, 33, 300])
def test_threads_and_repetition_change_nothing(m: int) -> None:
    rng = np.random.default_rng(2)
    dense = weights(rng, (403, 700), 0.3, np.float32)
    x = rng.standard_normal((m, 700)).astype(np.float32)
    for label, matrix in matrices(dense):
        alone = matrix.matmul(x)
        for threads in (1, 2, 3):
            assert np.array_equal(matrix.matmul(x, threads), alone), f"{label} threads={threads}"


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [1, 3, 9, 40])
def test_nan_and_infinity_spread_as_in_dense_arithmetic(special: float, m: int) -> None:
    """Also from columns whose weights are all dropped: 0 * inf is NaN."""
    rng = np.random.default_rng(3)
    dense = weights(rng, (40, 130), 0.2, np.float32)
    dense[:, 129] = 0
    for column in (0, 64, 129):
        x = rng.standard_normal((m, 130)).astype(np.float32)
        x[m // 2, column] = special
        with np.errstate(invalid="ignore"):
            want = x.astype(np.float64) @ dense.astype(np.float64).T
        for label, matrix in matrices(dense):
            found = matrix.matmul(x)
            assert np.array_equal(np.isnan(found), np.isnan(want)), label
            assert np.array_equal(np.isposinf(found), np.isposinf(want)), label
            assert np.array_equal(np.isneginf(found), np.isneginf(want)), label


def test_special_weights_survive_packing() -> None:
    dense = np.zeros((17, 300), np.float32)
    dense[0, 299], dense[5, 0], dense[16, 128], dense[7, 7] = np.inf, np.nan, 1e-45, -0.0
    x = np.ones((1, 300), np.float32)
    for label, matrix in matrices(dense):
        found = matrix.matmul(x)[0]
        assert np.isposinf(found[0]), label
        assert np.isnan(found[5]), label
        if not label.startswith("amx"):
            assert found[16] == np.float32(1e-45), label
        assert not np.delete(found, [0, 5, 16]).any(), label


def test_long_gaps_are_bridged_in_the_index_format() -> None:
    """Columns more than 255 apart, in the first and the last place, beside rows of every length."""
    rng = np.random.default_rng(4)
    dense = np.zeros((35, 3000), np.float32)
    for row, columns in enumerate([[], [0], [2999], [0, 2999], [255, 510, 766], [256, 1023], [1024, 2047, 2048]]):
        dense[row * 5, columns] = rng.standard_normal(len(columns))
    for label, matrix in matrices(dense):
        for m in (1, 6):
            x = rng.standard_normal((m, 3000)).astype(np.float32)
            assert_close(matrix.matmul(x), x, dense, label)


@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_a_matrix_without_columns_gives_zeros(isa: Any) -> None:
    if isa not in isas():
        pytest.skip(f"this processor does not run {isa}")
    for form in FORMATS:
        parts: Array = np.zeros((5, 0), np.uint8)
        matrix = CpuMatrix(np.zeros(0, np.float32), (5, 0), mask=parts, isa=isa, format=form)
        for m in (1, 7):
            assert np.array_equal(matrix.matmul(np.zeros((m, 0), np.float32)), np.zeros((m, 5), np.float32))


def test_automatic_choice_goes_from_dense_over_mask_to_index() -> None:
    """Dense where nothing is zero, the mask at half, the index where hardly anything is left."""
    rng = np.random.default_rng(5)
    chosen = []
    for density in (1.0, 0.5, 0.05):
        packed = pack(np.where(rng.random((64, 512)) < density, np.float32(1), np.float32(0)))
        chosen.append(CpuMatrix(packed.values, packed.shape, mask=packed.mask, isa="portable").describe().format)
    assert chosen == ["dense", "bitmask", "index"]


def test_parts_that_disagree_are_refused() -> None:
    packed = pack(np.eye(20, 70, dtype=np.float32))
    with pytest.raises(InputError, match="mask names 20 weights, 19 values are stored"):
        CpuMatrix(packed.values[1:], packed.shape, mask=packed.mask)
    with pytest.raises(InputError, match="no columns"):
        CpuMatrix(np.zeros(0, np.float32), (1 << 30, 0))
