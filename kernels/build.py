"""Compile kernels/cpu/*.cpp into one shared library with g++ (or clang++). Standard library only: setup.py runs this.

Every instruction set has its own files and its own flags, chosen by the file name; the library picks one when it runs,
so nothing is compiled for "this machine". A compiler that does not know a flag set (an old one, or another processor)
compiles those files without it, and they then offer no kernels.

A second call costs nothing while sources, flags and compiler are the same: the library's stamp (a JSON file beside it)
carries their hash and the compiler's warnings. Objects are kept beside it too, so that one changed file is one compilation.

    python kernels/build.py            build or refresh the library beside this file
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).resolve().parent / "cpu"
LIBRARY: Final = Path(__file__).resolve().with_name("libtailcut_cpu.so")
_WARNINGS: Final = ("-Wall", "-Wextra")
_COMMON: Final = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-pthread", *_WARNINGS)
_AVX2: Final = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
_AVX512_SETS: Final = ("f", "bw", "vl", "dq", "vbmi", "vbmi2", "vnni")
_AVX512: Final = (*(f"-mavx512{name}" for name in _AVX512_SETS), "-mfma", "-mf16c", "-mbmi", "-mbmi2")
_AMX: Final = (*_AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16")
_BY_PREFIX: Final = {"avx2": _AVX2, "avx512": _AVX512, "amx": _AMX}
# the library stays loaded once it is: the runtime's threads may still be inside it when a session goes
_LINK: Final = ("-shared", "-pthread", "-Wl,-z,nodelete", "-Wl,-z,defs")
_TIMEOUT_S: Final = 900


class BuildError(RuntimeError):
    """No usable compiler, or it refused the sources; one sentence with the compiler's first error."""


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler: its command and what `--version` says first."""

    command: str
    version: str


def build(out: Path, *, sanitize: str = "", emulate: bool = False, jobs: int = 2) -> Path:
    """Make the library at `out` unless it is there and current.

    sanitize: a -fsanitize list such as "address,undefined". emulate: the AVX-512 and AMX files are compiled for any
    processor, with plain C++ in place of the intrinsics (TAILCUT_EMULATE), so that their logic can be tested.
    """
    compiler = find_compiler()
    flags = {source: _flags(compiler, source, sanitize, emulate) for source in sorted(SOURCES.glob("*.cpp"))}
    stamp = out.with_suffix(".json")
    wanted = _fingerprint(compiler, flags, sanitize)
    if out.is_file() and _stamped(stamp) == wanted:
        return out
    objects = out.with_suffix(".objects")
    objects.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        made = list(pool.map(lambda source: _compile(compiler, source, flags[source], objects), flags))
    warnings = _link(compiler, [path for path, _ in made], out, sanitize)
    _forget_old(objects, {path for path, _ in made})
    said = "".join(text for _, text in made) + warnings
    _replace(stamp, json.dumps({"fingerprint": wanted, "compiler": compiler.version, "warnings": said}, indent=1))
    return out


def find_compiler() -> Compiler:
    """$CXX, or the first of c++, g++ and clang++ that runs; BuildError if there is none."""
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["g++", "c++", "clang++"]:
        path = shutil.which(candidate)
        if path is None:
            continue
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return Compiler(path, (done.stdout.splitlines() or ["unknown"])[0])
    what = f"CXX names {named}, which does not run" if named else "no C++ compiler (g++, c++ or clang++) was found"
    raise BuildError(f"{what}; on Debian: apt-get install g++")


def _flags(compiler: Compiler, source: Path, sanitize: str, emulate: bool) -> tuple[str, ...]:
    """All flags of one file."""
    prefix = next((name for name in ("avx512", "avx2", "amx") if source.name.startswith(name)), "")
    own = _BY_PREFIX.get(prefix, ())
    extra: tuple[str, ...] = ("-O3",)
    if sanitize:
        extra = ("-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}", "-fno-sanitize-recover=all")
    if emulate:
        extra = (*extra, "-DTAILCUT_EMULATE")
        own = () if prefix in ("avx512", "amx") else own
    return (*_COMMON, *extra, *(own if own and _accepts(compiler, own) else ()))


_KNOWN: dict[tuple[str, tuple[str, ...]], bool] = {}


def _accepts(compiler: Compiler, flags: tuple[str, ...]) -> bool:
    """Whether the compiler (for its processor) knows these flags."""
    key = (compiler.command, flags)
    if key not in _KNOWN:
        argv = [compiler.command, *flags, "-x", "c++", "-fsyntax-only", "-Werror", os.devnull]
        _KNOWN[key] = subprocess.run(argv, capture_output=True, check=False).returncode == 0
    return _KNOWN[key]


def _fingerprint(compiler: Compiler, flags: dict[Path, tuple[str, ...]], sanitize: str) -> str:
    """Hash of everything the library is made from."""
    digest = hashlib.sha256(f"{compiler}{platform.machine()}{_link_flags(sanitize)}{_headers()}".encode())
    for source, own in flags.items():
        digest.update(f"{source.name}{own}".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _headers() -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.h")))).hexdigest()


def _stamped(stamp: Path) -> str | None:
    try:
        found = json.loads(stamp.read_bytes())
    except (OSError, ValueError):
        return None
    return str(found.get("fingerprint")) if isinstance(found, dict) else None


def _compile(compiler: Compiler, source: Path, flags: Sequence[str], objects: Path) -> tuple[Path, str]:
    """One object file and what the compiler warned about; kept from an earlier build where nothing changed."""
    text = source.read_bytes()
    name = hashlib.sha256(f"{compiler}{flags}{_headers()}".encode() + text).hexdigest()[:16]
    target = objects / f"{source.stem}-{name}.o"
    said = target.with_suffix(".txt")
    if target.is_file() and said.is_file():
        return target, said.read_text()
    partial = objects / f"{target.name}.{os.getpid()}"
    warned = _run([compiler.command, *flags, "-c", str(source), "-o", str(partial)], source.name)
    _replace(said, warned)
    partial.replace(target)
    return target, warned


def _link(compiler: Compiler, objects: Sequence[Path], out: Path, sanitize: str) -> str:
    partial = out.with_name(f"{out.name}.{os.getpid()}")
    said = _run([compiler.command, *map(str, objects), *_link_flags(sanitize), "-o", str(partial)], "the library")
    partial.replace(out)
    return said


def _link_flags(sanitize: str) -> tuple[str, ...]:
    if sanitize:  # the sanitizer's own library must resolve some names when the process starts
        return (*(flag for flag in _LINK if flag != "-Wl,-z,defs"), f"-fsanitize={sanitize}")
    return (*_LINK, "-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")


def _run(argv: Sequence[str], what: str) -> str:
    """What the compiler wrote; BuildError with its first error if it failed."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{argv[0]} could not compile {what} ({error})") from error
    if done.returncode:
        lines = done.stderr.splitlines()
        telling = (line for line in lines if "error:" in line or "undefined reference" in line)
        first = next(telling, lines[-1] if lines else f"exit {done.returncode}")
        raise BuildError(f"{argv[0]} could not compile {what}: {first.strip()}")
    return done.stderr


def _forget_old(objects: Path, kept: set[Path]) -> None:
    """Remove objects of earlier sources, as far as this build's own names go."""
    stems = {path.stem.rsplit("-", 1)[0] for path in kept}
    for path in objects.glob("*.o"):
        if path not in kept and path.stem.rsplit("-", 1)[0] in stems:
            path.unlink(missing_ok=True)
            path.with_suffix(".txt").unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build(LIBRARY, jobs=os.cpu_count() or 1)}\n")
    except BuildError as error:
        sys.exit(f"build: {error}")
