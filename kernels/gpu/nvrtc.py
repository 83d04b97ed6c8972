"""CUDA C++ -> cubin when a kernel is first wanted: NVRTC as the CUDA wheels of torch bring it, else nvcc.

A cubin is kept in the user's cache folder under the hash of its source, its settings, the compute capability and the
compiler's version. Nothing here needs a GPU, so a machine without one can check that a kernel compiles.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tailcut.errors import MissingEnvironmentError
from tailcut.files import write_file

SOURCES: Final = Path(__file__).resolve().parent / "cuda"
_STANDARD: Final = "-std=c++17"
_NVCC_SECONDS: Final = 120


class CompileError(RuntimeError):
    """The compiler refused the source: a defect here, not of the user's; carries the compiler's log."""


@dataclass(frozen=True, slots=True)
class CudaCompiler:
    """NVRTC (path of the library) or nvcc (path of the program), with its version (major, minor)."""

    kind: str
    path: str
    version: tuple[int, int]


def cubin(source: Path, settings: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    """The compiled `source` for compute capability (major, minor), with `settings` as macros; from the cache if there."""
    compiler = find_compiler()
    text = source.read_text()
    macros = {**settings, "ORDERED": int(compiler.version >= (12, 5))}  # mma.sp::ordered_metadata is PTX 8.5
    options = [
        f"-arch=sm_{capability[0]}{capability[1]}",
        _STANDARD,
        *(f"-D{k}={v}" for k, v in sorted(macros.items())),
    ]
    key = hashlib.sha256(repr((text, options, compiler.kind, compiler.version)).encode()).hexdigest()[:32]
    folder = cache_folder("kernels")
    kept = folder / f"{source.stem}-{key}.cubin" if folder else None
    if kept is not None and kept.is_file():
        return kept.read_bytes()
    made = _with_nvrtc(compiler, text, options) if compiler.kind == "nvrtc" else _with_nvcc(compiler, source, options)
    if kept is not None:
        _keep(kept, made)
    return made


@functools.cache
def find_compiler() -> CudaCompiler:
    """NVRTC if it can be loaded, else nvcc; MissingEnvironmentError where there is neither."""
    for name in _nvrtc_names():
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        major, minor = ctypes.c_int(), ctypes.c_int()
        if library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0:
            return CudaCompiler("nvrtc", name, (major.value, minor.value))
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False, timeout=_NVCC_SECONDS)
        release = said.stdout.partition("release ")[2].partition(",")[0].split(".")
        if len(release) == 2:
            return CudaCompiler("nvcc", nvcc, (int(release[0]), int(release[1])))
    raise MissingEnvironmentError(
        "the CUDA C++ kernels need NVRTC (it comes with torch's CUDA wheels) or nvcc, and neither was found"
    )


@functools.cache
def available() -> bool:
    """Whether there is a compiler."""
    try:
        find_compiler()
    except MissingEnvironmentError:
        return False
    return True


def cache_folder(name: str) -> Path | None:
    """`$XDG_CACHE_HOME/tailcut/NAME`, else `~/.cache/tailcut/NAME`; None where there is no home directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "tailcut" / name
    except RuntimeError:
        return None


def _nvrtc_names() -> list[str]:
    """What to ask the dynamic loader for: by name (torch may have loaded it), then where wheels and toolkits put it."""
    places = [Path(entry) / "nvidia" for entry in sys.path if entry]
    found = [path for place in places for path in sorted(place.glob("*/lib/libnvrtc.so.*"), reverse=True)]
    toolkits = sorted(Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.*"), reverse=True)
    names = [str(path) for path in [*found, *toolkits] if "alt" not in path.name]
    return [*names, "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]


def _with_nvrtc(compiler: CudaCompiler, text: str, options: Sequence[str]) -> bytes:
    library = ctypes.CDLL(compiler.path)
    program = ctypes.c_void_p()
    _check(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None), "")
    try:
        argv = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), argv)
        log = _fetch(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
        _check(status, log.rstrip(b"\0").decode(errors="replace"))
        return _fetch(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(size_of: Callable[..., int], read: Callable[..., int], program: ctypes.c_void_p) -> bytes:
    """A text or binary that NVRTC gives in two calls: its size, then its bytes."""
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)), "")
    buffer = ctypes.create_string_buffer(max(1, size.value))
    _check(read(program, buffer), "")
    return buffer.raw[: size.value]


def _check(status: int, log: str) -> None:
    if status != 0:
        raise CompileError(f"NVRTC error {status}: {log}")


def _with_nvcc(compiler: CudaCompiler, source: Path, options: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernel.cubin"
        argv = [compiler.path, "-cubin", *options, "-o", str(out), str(source)]
        ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_NVCC_SECONDS)
        if ran.returncode != 0:
            raise CompileError(f"nvcc: {ran.stderr.strip()}")
        return out.read_bytes()


def _keep(path: Path, content: bytes) -> None:
    """Into the cache; a folder that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except (OSError, MissingEnvironmentError):
        return
