"""Slots as AVX-512 and AMX read them, against integer arithmetic: every sum is exact, so every product is.

Activations are integers, and 127 is the largest of every group: they are quantised to themselves. Scales are 1. Sums
stay far below 2^24, where float32 is exact too.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix
from tailcut.quantised import GROUP, groups, pack_nibbles

Integers = npt.NDArray[np.int8]
LEAST: Final = {"i8": -128, "i4": -8}
SHAPES: Final = ((1, 1), (16, 128), (17, 130), (33, 300), (70, 576), (40, 1100), (150, 190))
DENSITIES: Final = (0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)  # 0, 2 and 4 places a window, with and without full layers


def weights(rng: np.random.Generator, kind: str, shape: tuple[int, int], density: float) -> Integers:
    """Rows of very different length; one is full, -128 and -8 occur."""
    kept = rng.random(shape) < density * rng.uniform(0.3, 1.7, (shape[0], 1))
    kept[shape[0] // 2] |= density > 0
    least = LEAST[kind]
    return np.where(kept, rng.integers(least, -least, shape), 0).astype(np.int8)


def packed(q: Integers, kept: npt.NDArray[np.bool_], kind: str, isa: library.Isa, path: Path, **more: Any) -> CpuMatrix:
    mask = np.packbits(kept, axis=1, bitorder="little")
    side = (q.shape[0],) if kind == "i8" else (q.shape[0], groups(q.shape[1]))
    values = q[kept] if kind == "i8" else pack_nibbles(q[kept]).ravel()
    scales = np.ones(side, np.float32)
    return CpuMatrix(values, (q.shape[0], q.shape[1]), mask=mask, scales=scales, isa=isa, path=path, **more)


def activations(rng: np.random.Generator, m: int, columns: int) -> npt.NDArray[np.float32]:
    x = rng.integers(-126, 127, (m, columns)).astype(np.float32)
    for start in range(0, columns, GROUP):
        x[:, start + rng.integers(min(GROUP, columns - start))] = rng.choice([-127, 127], m)
    return x


@pytest.mark.parametrize("kind", ["i8", "i4"])
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_exact(kind: str, density: float, shape: tuple[int, int], kernels: Path, isa: library.Isa) -> None:
    rng = np.random.default_rng(7)
    q = weights(rng, kind, shape, density)
    made = packed(q, q != 0, kind, isa, kernels, format="slots")
    for m in (1, 2, 3, 5, 9, 16, 17, 33, 40):
        x = activations(rng, m, shape[1])
        np.testing.assert_array_equal(made.matmul(x), x.astype(np.float64) @ q.T.astype(np.float64))


@pytest.mark.parametrize("kind", ["i8", "i4"])
def test_entries_of_value_0_have_their_places(kind: str, kernels: Path, isa: library.Isa) -> None:
    rng = np.random.default_rng(8)
    q = weights(rng, kind, (20, 200), 0.5)
    q[:, ::3] = 0
    made = packed(q, np.ones(q.shape, bool), kind, isa, kernels, format="slots")
    for m in (1, 40):
        x = activations(rng, m, 200)
        np.testing.assert_array_equal(made.matmul(x), x.astype(np.float64) @ q.T.astype(np.float64))


@pytest.mark.parametrize("kind", ["i8", "i4"])
def test_slots_are_chosen_where_little_is_left(kind: str, kernels: Path, isa: library.Isa) -> None:
    """At 90 % zeros they have fewer bytes than masks or hardly more, and need a fraction of the arithmetic."""
    rng = np.random.default_rng(9)
    kept = rng.random((256, 1024)) < 0.1
    q = np.where(kept, rng.integers(1, 8, kept.shape), 0).astype(np.int8)
    assert packed(q, kept, kind, isa, kernels).describe().format == "slots"
    full = np.ones((256, 1024), bool)
    assert packed(np.ones_like(q), full, kind, isa, kernels).describe().format == "dense"
