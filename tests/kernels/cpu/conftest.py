"""The kernels as a library: as the package has it, and with the sanitizers and every emulation; fuzz drivers over either."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tailcut.kernels import library
from tailcut.kernels.build import LIBRARY, SOURCES, BuildError, build, find_compiler

SANITIZERS: Final = "address,undefined"
MakeFuzzer = Callable[..., Path]


@pytest.fixture(scope="session")
def kernel_library() -> Path:
    """The library beside the package, built if sources changed."""
    return _built(LIBRARY)


@pytest.fixture(scope="session")
def make_fuzzer() -> MakeFuzzer:
    """make_fuzzer(library, folder, source=..., sanitize="") -> the compiled fuzz driver over that library."""
    return _fuzzer


@pytest.fixture(scope="session")
def sanitized_fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver and the library with AddressSanitizer and UBSan, AVX-512 and AMX in plain C++; about a minute."""
    folder = tmp_path_factory.mktemp("sanitized")
    return _fuzzer(_built(folder / "libtailcut_cpu.so", SANITIZERS, emulate=True), folder, sanitize=SANITIZERS)


@pytest.fixture(scope="module", params=["native", pytest.param("emulated", marks=pytest.mark.slow)])
def kernels(request: pytest.FixtureRequest) -> Path:
    """The library, natively if this processor has AVX-512, or with plain C++ in place of it."""
    if request.param == "emulated":
        emulated: Path = request.getfixturevalue("emulated_library")
        return emulated
    built: Path = request.getfixturevalue("kernel_library")
    if "avx512" not in library.isas(built):
        pytest.skip("this processor has no AVX-512 (VBMI2, VNNI): the emulated run covers it")
    return built


@pytest.fixture(params=["avx512", "amx"])
def isa(request: pytest.FixtureRequest, kernels: Path) -> library.Isa:
    name: library.Isa = request.param
    if name not in library.isas(kernels):
        pytest.skip(f"this processor has no {name}: the emulated run covers it")
    return name


def _built(out: Path, sanitize: str = "", *, emulate: bool = False) -> Path:
    try:
        find_compiler()
    except BuildError as error:
        pytest.skip(f"the kernels cannot be compiled here: {error}")
    return build(
        out, sanitize=sanitize, emulate=emulate, jobs=os.cpu_count() or 1
    )  # what does not compile is a failure


def _fuzzer(kernels: Path, folder: Path, *, source: Path = SOURCES / "fuzz" / "fuzz.cpp", sanitize: str = "") -> Path:
    program = folder / "fuzz"
    checks = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g"] if sanitize else []
    words = [find_compiler().command, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", *checks]
    subprocess.run([*words, str(source), str(kernels), f"-Wl,-rpath,{kernels.parent}", "-o", str(program)], check=True)
    return program
