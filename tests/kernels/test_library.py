"""The plain interface to the kernels: what it refuses, what it describes, and what it counts."""

import numpy as np
import pytest

from tailcut.bitmask import pack
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix


def sparse(rows: int = 20, columns: int = 70) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(rng.random((rows, columns)) < 0.3, rng.standard_normal((rows, columns)), 0).astype(np.float32)


def packed(**settings: object) -> CpuMatrix:
    stored = pack(sparse())
    return CpuMatrix(stored.values, stored.shape, mask=stored.mask, **settings)


def test_product_and_description() -> None:
    matrix, x = packed(isa="portable", format="bitmask"), np.ones((2, 3, 70), np.float32)
    before = library.counters().get("f32 bitmask portable", 0)
    out = np.empty((2, 3, 20), np.float32)
    assert matrix.matmul(x, threads=2, out=out) is out
    np.testing.assert_allclose(out, x @ sparse().T, atol=1e-5)  # 70 terms in another order
    assert library.counters()["f32 bitmask portable"] == before + 1
    about = matrix.describe()
    assert (about.kind, about.format, about.isa, about.shape) == ("f32", "bitmask", "portable", (20, 70))
    assert about.nonzeros == np.count_nonzero(sparse())
    assert about.bytes >= 4 * about.nonzeros + 20 * 70 // 8


def test_instruction_sets() -> None:
    assert library.isas()[0] == "portable"
    assert library.best_isa() in library.isas()


def test_what_does_not_exist_is_refused() -> None:
    stored = pack(sparse())
    with pytest.raises(InputError, match="float64, not one of float32"):
        CpuMatrix(stored.values.astype(np.float64), stored.shape, mask=stored.mask)
    with pytest.raises(InputError, match=r"matrix 20 x 70: mask names \d+ weights, \d+ values"):
        CpuMatrix(stored.values[1:], stored.shape, mask=stored.mask)
    with pytest.raises(InputError, match="x of shape"):
        packed().matmul(np.zeros((2, 69), np.float32))
    with pytest.raises(InputError, match="out must be contiguous float32"):
        packed().matmul(np.zeros((2, 70), np.float32), out=np.zeros((2, 21), np.float32))
    with pytest.raises(InputError, match="sse9 is not one of auto, portable"):
        packed(isa="sse9")
    with pytest.raises(InputError, match="diagonal is not one of auto, dense"):
        library.force(format="diagonal")  # type: ignore[arg-type]


def test_an_instruction_set_that_is_not_here() -> None:
    missing = [name for name in library.ISAS if name not in library.isas()]
    if not missing:
        pytest.skip("this processor runs every instruction set")
    with pytest.raises(MissingEnvironmentError, match=f"does not run {missing[0]} kernels"):
        library.force(missing[0])
    with pytest.raises(InputError, match="does not run"):
        packed(isa=missing[0])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    x = np.random.default_rng(1).standard_normal((3, 300), np.float32)
    stored = pack(sparse(500, 300))
    matrix = CpuMatrix(stored.values, stored.shape, mask=stored.mask)
    for _ in range(20):
        np.testing.assert_array_equal(matrix.matmul(x, threads), matrix.matmul(x, 1))
