"""Malformed matrices, by kernels/cpu/fuzz/fuzz.cpp: an error sentence or the right product, never a crash.

A quick run goes through the library as it is installed. The slow run is a million cases under AddressSanitizer and UBSan,
with the AVX-512 and AMX files compiled as plain C++ so that their logic is held to float64 on every machine.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tailcut.kernels.build import SOURCES

CASES: Final = 1_000_000
PROCESSES: Final = 4  # no case needs another: shares run side by side


def start(program: Path, first: int, count: int) -> subprocess.Popen[str]:
    words = [str(program), str(first), str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, int]:
    """(multiplied, refused); fails with what the driver or a sanitizer said."""
    said, _ = process.communicate()
    found = re.fullmatch(r"\d+ cases: (\d+) multiplied, (\d+) refused\n", said)
    assert process.returncode == 0, said[-4000:]
    assert found, said[-4000:]
    return int(found[1]), int(found[2])


def test_quick_run_over_the_installed_library(
    kernel_library: Path, make_fuzzer: Callable[..., Path], tmp_path: Path
) -> None:
    multiplied, refused = finish(start(make_fuzzer(kernel_library, tmp_path), 5_000_000, 20_000))
    assert multiplied > 2_000  # otherwise the cases would all stop at the first check
    assert refused > 8_000


def test_driver_notices_a_wrong_product(kernel_library: Path, make_fuzzer: Callable[..., Path], tmp_path: Path) -> None:
    """The oracle is not blind: where nothing may be off, rounding alone is an error."""
    copy = tmp_path / "cpu"
    shutil.copytree(SOURCES / "fuzz", copy / "fuzz")
    shutil.copy(SOURCES / "capi.h", copy)
    reference = copy / "fuzz" / "reference.h"
    before = reference.read_text()
    reference.write_text(before.replace("return {sum, order};", "return {sum, 0 * order};"))
    assert reference.read_text() != before
    program = make_fuzzer(kernel_library, tmp_path, source=copy / "fuzz" / "fuzz.cpp")
    done = subprocess.run([str(program), "0", "2000"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"case \d+ .*: format \d isa \d m \d+: y\[\d+, \d+\] is", done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiling with the sanitizers takes a minute or two, the cases as long again
def test_a_million_cases_under_the_sanitizers(sanitized_fuzzer: Path) -> None:
    share = CASES // PROCESSES
    counts = [finish(process) for process in [start(sanitized_fuzzer, n * share, share) for n in range(PROCESSES)]]
    multiplied, refused = (sum(column) for column in zip(*counts, strict=True))
    assert multiplied + refused == CASES
    assert multiplied > CASES // 10
