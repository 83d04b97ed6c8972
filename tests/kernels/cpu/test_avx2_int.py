"""int8 and int4 on AVX2 against float64: every format, from one row of x to several blocks of them.

Which kernel runs depends on the number of rows of x (one, a few, many), so the numbers below lie on both sides of every
such border.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from tailcut.kernels import library
from tailcut.quantised import GROUP, groups, pack_nibbles, spread

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
KINDS: Final = ("i8", "i4")
FORMATS: Final[tuple[library.Format, ...]] = ("dense", "bitmask", "slots")
BATCHES: Final = (1, 2, 3, 4, 5, 9, 10, 13, 16, 17, 24, 25, 32, 33, 48, 65, 97)
SHAPES: Final = ((1, 1), (16, 16), (17, 127), (33, 129), (5, 64), (48, 257), (40, 576))
RELATIVE: Final = 1e-6  # of the sum of magnitudes: groups are exact, up to five of them are added in float32


@dataclass(frozen=True, slots=True)
class Case:
    """An integer matrix, its scales, and its product's weights in float64."""

    codes: npt.NDArray[np.int8]
    scales: Floats
    weight: npt.NDArray[np.float64]
    matrix: library.CpuMatrix


@pytest.fixture(autouse=True)
def _library(kernel_library: Path) -> None:
    if "avx2" not in library.isas(kernel_library):
        pytest.skip("this processor has no AVX2")


def case(codes: npt.NDArray[np.int8], kind: str, format: library.Format) -> Case:
    """Every entry that is not 0 is in the mask."""
    rows, columns = codes.shape
    rng = np.random.default_rng(rows * columns)
    scales = rng.uniform(0.01, 0.1, (rows,) if kind == "i8" else (rows, groups(columns))).astype(np.float32)
    masked = format != "dense"
    mask = np.packbits(codes != 0, axis=1, bitorder="little") if masked else None
    kept = codes[codes != 0] if masked else codes
    values = kept if kind == "i8" else pack_nibbles(kept).ravel()
    matrix = library.CpuMatrix(
        np.ascontiguousarray(values), (rows, columns), mask=mask, scales=scales, isa="avx2", format=format
    )
    assert matrix.describe().format == format
    return Case(codes, scales, codes.astype(np.float64) * spread(scales, columns), matrix)


def random_codes(rng: np.random.Generator, kind: str, shape: tuple[int, int], density: float) -> npt.NDArray[np.int8]:
    top = 127 if kind == "i8" else 7
    codes = np.where(rng.random(shape) < density, rng.integers(-top - 1, top + 1, shape), 0).astype(np.int8)
    if shape[0] > 2:
        codes[0], codes[1] = 0, np.where(rng.random(shape[1]) < 0.5, top, -top)  # an empty row, a full one at both ends
    return codes


def quantised(x: Floats) -> npt.NDArray[np.float64]:
    """x as the kernels see it, from the definition: int8 by groups, times the scale."""
    seen = np.zeros(x.shape)
    for start in range(0, x.shape[1], GROUP):
        part = x[:, start : start + GROUP]
        top = np.abs(part).max(axis=1, keepdims=True)
        inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
        seen[:, start : start + GROUP] = np.rint(part * inverse).astype(np.float64) * (top / np.float32(127))
    return seen


def check(made: Case, x: Floats) -> None:
    seen = quantised(x)
    error = np.abs(made.matrix.matmul(x, 1) - seen @ made.weight.T)
    assert (error <= RELATIVE * (np.abs(seen) @ np.abs(made.weight.T))).all(), (x.shape, error.max())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.1, 0.2, 0.5, 1.0])
def test_products_agree_with_float64(kind: str, format: library.Format, density: float) -> None:
    rng = np.random.default_rng(7)
    for shape in SHAPES:
        made = case(random_codes(rng, kind, shape, density), kind, format)
        for m in BATCHES:
            check(made, rng.standard_normal((m, shape[1])).astype(np.float32))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("density", [0.2, 0.6])
def test_a_prompt_longer_than_one_pass(format: library.Format, density: float) -> None:
    rng = np.random.default_rng(13)
    made = case(random_codes(rng, "i8", (40, 200), density), "i8", format)
    for m in (200, 201, 511, 513, 1100):
        check(made, rng.standard_normal((m, 200)).astype(np.float32))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("m", [1, 4, 9, 10, 32, 40])
def test_nothing_saturates(format: library.Format, m: int) -> None:
    """The largest sums there are: all weights and all activations at one end or the other.

    Our quantiser stays within 127; packages of others may hold -128, whose negative is no int8.
    """
    for weight in (127, -127, -128):
        made = case(np.full((20, 3 * GROUP), weight, np.int8), "i8", format)
        x = np.ones((m, 3 * GROUP), np.float32)
        x[1::2] = -1
        check(made, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 5, 16, 40])
def test_rows_that_crowd_in_one_window_go_to_wide_places_and_lists(kind: str, m: int) -> None:
    rng = np.random.default_rng(3)
    for crowd in (6, 16, 40, 128):
        codes = np.zeros((32, 2 * GROUP), np.int8)
        codes[::5, :crowd] = rng.integers(1, 8, (7, crowd))
        codes[rng.random(codes.shape) < 0.05] = 3
        check(case(codes, kind, "slots"), rng.standard_normal((m, 2 * GROUP)).astype(np.float32))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 3, 9, 10, 33, 70])
def test_threads_change_no_bit(kind: str, format: library.Format, m: int) -> None:
    rng = np.random.default_rng(5)
    codes = random_codes(rng, kind, (600, 1024), 0.3)  # worth several tasks
    made = case(codes, kind, format)
    x = rng.standard_normal((m, 1024)).astype(np.float32)
    alone = made.matrix.matmul(x, 1)
    for threads in (2, 3):
        assert made.matrix.matmul(x, threads).tobytes() == alone.tobytes()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("m", [2, 9, 10, 33])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_row_alone(format: library.Format, m: int, bad: float) -> None:
    rng = np.random.default_rng(11)
    made = case(random_codes(rng, "i8", (24, 300), 0.2), "i8", format)
    x = rng.standard_normal((m, 300)).astype(np.float32)
    clean = made.matrix.matmul(x, 1)
    x[m - 1, 299] = bad
    found = made.matrix.matmul(x, 1)
    assert np.isnan(found[m - 1]).all()
    np.testing.assert_array_equal(found[: m - 1], clean[: m - 1])
