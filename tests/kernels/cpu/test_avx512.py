"""The AVX-512 and AMX kernels against float64: as plain C++ on every machine, and natively where the processor has them.
Attention on AVX-512 is tested beside the other instruction sets', in tests/kernels/test_attention.py.

Compiled in plain C++ (TAILCUT_EMULATE) they take minutes to compile, so that run is slow; a machine with AVX-512 tests
the installed library in seconds.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from tailcut.kernels import library
from tailcut.quantised import GROUP, groups, pack_nibbles, spread

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
KINDS: Final = ("f32", "f16", "bf16", "i8", "i4")
COLUMNS: Final = (*range(1, 66), 127, 128, 129, 576, 1000)
ROWS: Final = (1, 2, 5, 15, 16, 17, 33)
BATCHES: Final = (1, 2, 3, 16, 17, 64, 65)
DENSITIES: Final = (0.5, 0.2, 1.0, 0.0, 0.05, 0.8)
# float32 sums of up to 1000 products in the kernels' order: below 4e-7 of the sum of magnitudes in all cases measured
RELATIVE: Final = 1e-6
TINY: Final = 1e-36  # AMX counts bfloat16 denormals (below 1.2e-38) as zero, in up to 1000 products


@dataclass(frozen=True, slots=True)
class Case:
    """A matrix as the package holds it, and in float64."""

    kind: str
    weight: npt.NDArray[np.float64]
    values: Array
    mask: npt.NDArray[np.uint8] | None
    scales: Floats | None


def case(rng: np.random.Generator, kind: str, rows: int, columns: int, density: float, *, dense: bool = False) -> Case:
    kept = np.ones((rows, columns), bool) if dense else rng.random((rows, columns)) < density
    kept[rows // 2] |= not dense and density > 0  # a full row
    if not dense:
        kept[rows - 1] &= rows == 1  # an empty one
    mask = None if dense else np.packbits(kept, axis=1, bitorder="little")
    if kind in ("i8", "i4"):
        return _integers(rng, kind, kept, mask)
    dtype = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}[kind]
    stored = rng.standard_normal((rows, columns)).astype(np.float32).astype(dtype)
    return Case(kind, np.where(kept, stored.astype(np.float64), 0.0), stored[kept], mask, None)


def _integers(rng: np.random.Generator, kind: str, kept: npt.NDArray[np.bool_], mask: Array | None) -> Case:
    rows, columns = kept.shape
    top = 127 if kind == "i8" else 7
    q = np.where(kept, rng.integers(-top - 1, top + 1, kept.shape), 0).astype(np.int8)  # -128 and -8 may be stored, too
    scales = rng.uniform(0.01, 0.1, (rows,) if kind == "i8" else (rows, groups(columns))).astype(np.float32)
    weight = q.astype(np.float64) * spread(scales, columns)
    if kind == "i8":
        return Case(kind, weight, q[kept], mask, scales)
    values = pack_nibbles(q) if mask is None else pack_nibbles(q[kept])
    return Case(kind, weight, values.ravel(), mask, scales)


def activations(rng: np.random.Generator, m: int, columns: int) -> Floats:
    """Normal, with a few large columns as language models have, and a group of zeros in every second row."""
    x = rng.standard_normal((m, columns)).astype(np.float32)
    x[:, rng.random(columns) < 0.02] *= 20
    x[1::2, : min(columns, GROUP)] = 0
    return x


def quantised(x: Floats) -> npt.NDArray[np.float64]:
    """x as the i8 and i4 kernels see it: int8 by groups, times the scale; written from the definition."""
    seen = np.zeros(x.shape)
    for start in range(0, x.shape[1], GROUP):
        part = x[:, start : start + GROUP]
        top = np.abs(part).max(axis=1, keepdims=True)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(top > 0, np.float32(127) / top, np.float32(0))
        usable = (inverse > 0) & np.isfinite(inverse)
        q = np.rint(np.where(usable, part * np.where(usable, inverse, np.float32(0)), np.float32(0)))
        seen[:, start : start + GROUP] = q.astype(np.float64) * np.where(usable, top / np.float32(127), np.float32(0))
    return seen


def product(made: Case, x: Floats, kernels: Path, isa: library.Isa, format: library.Format, threads: int = 1) -> Floats:
    rows, columns = made.weight.shape
    matrix = library.CpuMatrix(
        made.values, (rows, columns), mask=made.mask, scales=made.scales, isa=isa, format=format, path=kernels
    )
    described = matrix.describe()
    assert (described.kind, described.isa, described.format) == (made.kind, isa, format)
    return matrix.matmul(x, threads)


def assert_product(made: Case, x: Floats, got: Floats) -> None:
    seen = quantised(x) if made.kind in ("i8", "i4") else x.astype(np.float64)
    error = np.abs(got - seen @ made.weight.T)
    assert (error <= RELATIVE * (np.abs(seen) @ np.abs(made.weight.T)) + TINY).all(), error.max()


def formats(kind: str) -> tuple[library.Format, ...]:
    return ("dense", "bitmask", "slots") if kind in ("i8", "i4") else ("dense", "bitmask", "index")


def seeded(*words: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(words).encode()))


def shapes() -> Iterator[tuple[int, int, float, tuple[int, ...]]]:
    """Every number of columns; rows, densities and batch sizes go round so that all meet many columns."""
    batches = cycle(zip(BATCHES, BATCHES[3:] + BATCHES[:3], strict=True))
    for columns, rows, density in zip(COLUMNS, cycle(ROWS), cycle(DENSITIES), strict=False):
        yield rows, columns, density, next(batches)


@pytest.mark.parametrize("kind", KINDS)
def test_odd_shapes(kind: str, kernels: Path, isa: library.Isa) -> None:
    for format in formats(kind):
        for rows, columns, density, batches in shapes():
            rng = seeded(kind, format, rows, columns)
            made = case(rng, kind, rows, columns, density, dense=format == "dense")
            for m in batches:
                x = activations(rng, m, columns)
                assert_product(made, x, product(made, x, kernels, isa, format))


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_size_on_several_panels(kind: str, kernels: Path, isa: library.Isa) -> None:
    """150 rows are two panels, 1100 columns two stretches of every kernel, 530 rows of x two rounds of its sums."""
    rng = seeded(kind)
    made = case(rng, kind, 150, 1100, 0.4)
    for format in formats(kind)[1:]:
        for m in (*range(1, 10), 15, 31, 33, 48, 100, 530):
            x = activations(rng, m, 1100)
            assert_product(made, x, product(made, x, kernels, isa, format))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("m", [5, 16, 33, 65])
def test_index_rows_that_crowd_at_either_end(kind: str, m: int, kernels: Path, isa: library.Isa) -> None:
    """Rows of a slice need not run over the columns at one pace; gaps of more than 255 columns are bridged."""
    rng = seeded(kind, m)
    kept = rng.random((50, 1700)) < 0.02
    kept[::2, :400] = True
    kept[1::2, 1300:] = True
    kept[7, :] = True
    kept[9, :] = False
    dtype = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}[kind]
    stored = rng.standard_normal(kept.shape).astype(np.float32).astype(dtype)
    mask = np.packbits(kept, axis=1, bitorder="little")
    made = Case(kind, np.where(kept, stored.astype(np.float64), 0.0), stored[kept], mask, None)
    x = activations(rng, m, kept.shape[1])
    assert_product(made, x, product(made, x, kernels, isa, "index"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 4, 16, 65])
def test_threads_are_bitwise_equal(kind: str, m: int, kernels: Path, isa: library.Isa) -> None:
    rng = seeded(kind, m)
    for format in formats(kind):
        made = case(rng, kind, 333, 1000, 0.5, dense=format == "dense")
        x = activations(rng, m, 1000)
        alone = product(made, x, kernels, isa, format)
        for threads in (2, 3):
            assert product(made, x, kernels, isa, format, threads).tobytes() == alone.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 3, 17])
def test_matrix_of_zeros_gives_exact_zeros(kind: str, m: int, kernels: Path, isa: library.Isa) -> None:
    rng = seeded(kind, m)
    made = case(rng, kind, 33, 300, 0.0)
    for format in formats(kind)[1:]:
        assert not product(made, activations(rng, m, 300), kernels, isa, format).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 3, 6, 17])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(kind: str, m: int, bad: float, kernels: Path, isa: library.Isa) -> None:
    """In the outputs of the row of x that has it, as dense arithmetic gives; the other rows are as ever."""
    rng = seeded(kind, m)
    for format in formats(kind):
        made = case(rng, kind, 33, 300, 0.3, dense=format == "dense")
        x = activations(rng, m, 300)
        x[m // 2, 130] = bad
        got = product(made, x, kernels, isa, format)
        assert not np.isfinite(got[m // 2]).any()
        if kind in ("i8", "i4") or np.isnan(bad):
            assert np.isnan(got[m // 2]).all()
        others = np.arange(m) != m // 2
        assert_product(made, x[others], got[others])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 3, 17])
def test_denormals(kind: str, m: int, kernels: Path, isa: library.Isa) -> None:
    """Tiny activations: integer kernels count a group of denormals as zeros, the others multiply them."""
    rng = seeded(kind, m)
    made = case(rng, kind, 17, 300, 0.5)
    x = activations(rng, m, 300)
    x[:, :GROUP] = 1e-40 * np.sign(x[:, :GROUP] + 0.5)
    for format in formats(kind)[1:]:
        assert_product(made, x, product(made, x, kernels, isa, format))
