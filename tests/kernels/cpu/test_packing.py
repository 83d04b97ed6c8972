"""Packing spreads a matrix over threads: the same bytes however many there are, wherever it is called from."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix

Array = npt.NDArray[Any]
SHAPES: Final = ((1, 70), (17, 129), (100, 640), (203, 1000))  # the largest has several tiles for each thread
THREADS: Final = (2, 3, 7)
FLOATS: Final = (np.float32, np.float16, ml_dtypes.bfloat16)
CHILD: Final = """
import os, signal, sys
import numpy as np
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix
library.packing_threads(3)
values = np.ones((500, 64), np.float32)
def packed():
    return CpuMatrix(values.reshape(-1), values.shape).packed().tobytes()
before = packed()
child = os.fork()
if not child:
    signal.alarm(20)  # a child that waits for threads it does not have
    os._exit(int(packed() != before))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(autouse=True)
def _library(kernel_library: Path) -> Iterator[None]:
    """Every test here needs it, and leaves the choice of threads to it."""
    yield
    library.packing_threads(0)


def parts(kind: Any, shape: tuple[int, int], density: float, masked: bool = True) -> dict[str, Any]:
    """Random inputs of CpuMatrix; rows of very different length."""
    rng = np.random.default_rng(0)
    keep = rng.random(shape) < density * rng.uniform(0.2, 1.8, (shape[0], 1))
    mask = np.packbits(keep, axis=1, bitorder="little") if masked else None
    count = int(keep.sum()) if masked else shape[0] * shape[1]
    if kind == np.int8:
        return {
            "values": rng.integers(1, 128, count, np.int8),
            "mask": mask,
            "scales": rng.random(shape[0], np.float32),
        }
    if kind == np.uint8:
        if not masked:
            count = shape[0] * (shape[1] + 1) // 2 * 2
        scales = rng.random((shape[0], -(-shape[1] // 128)), np.float32)
        return {"values": rng.integers(0, 256, (count + 1) // 2, np.uint8), "mask": mask, "scales": scales}
    return {"values": rng.standard_normal(count, np.float32).astype(kind), "mask": mask}


def formats(kind: Any, isa: str) -> tuple[library.Format, ...]:
    if kind in FLOATS:
        return ("dense", "bitmask", "index")
    return ("dense", "bitmask") if isa == "portable" else ("dense", "bitmask", "slots")


@pytest.mark.parametrize("kind", [*FLOATS, np.int8, np.uint8], ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize("density", [0.02, 0.2, 0.6])
def test_threads_do_not_change_a_byte(kind: Any, density: float) -> None:
    for shape, isa in product(SHAPES, library.isas()):
        given = parts(kind, shape, density)
        for form in formats(kind, isa):
            library.packing_threads(1)
            alone = CpuMatrix(shape=shape, isa=isa, format=form, **given).packed()  # type: ignore[arg-type]
            assert alone.any()
            for threads in THREADS:
                library.packing_threads(threads)
                found = CpuMatrix(shape=shape, isa=isa, format=form, **given).packed()  # type: ignore[arg-type]
                np.testing.assert_array_equal(found, alone, f"{isa} {form} {shape} {threads} threads")


def test_a_matrix_worth_several_threads_is_packed_alike_by_itself() -> None:
    given = parts(np.int8, (600, 1000), 0.2)
    by_itself = CpuMatrix(shape=(600, 1000), **given).packed()
    library.packing_threads(1)
    np.testing.assert_array_equal(CpuMatrix(shape=(600, 1000), **given).packed(), by_itself)


def packed_at_once(threads: int) -> list[Array]:
    """Four callers on one pool of threads."""
    library.packing_threads(threads)
    given = parts(np.float32, (203, 1000), 0.2)
    with ThreadPoolExecutor(4) as callers:
        return list(callers.map(lambda _: CpuMatrix(shape=(203, 1000), **given).packed(), range(40)))


def test_callers_do_not_disturb_each_other() -> None:
    alone = packed_at_once(1)[0]
    for found in packed_at_once(3):
        np.testing.assert_array_equal(found, alone)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_packs_with_threads_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen here")
def test_one_processor_is_enough() -> None:
    """Threads that cannot run side by side sleep and wake each other: none waits for ever."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import numpy as np; from tailcut.kernels.library import CpuMatrix\n"
        "m = CpuMatrix(np.ones(64 * 64, np.float32), (64, 64)); x = np.ones((1, 64), np.float32)\n"
        "for _ in range(20000): y = m.matmul(x, threads=2)\n"
        "assert (y == 64).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
