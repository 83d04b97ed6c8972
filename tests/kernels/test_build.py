"""Compiling the library: once, again only after a change, without warnings, and one sentence when it cannot be done."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tailcut.errors import MissingEnvironmentError
from tailcut.kernels import build as tool
from tailcut.kernels import library


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small files and a header in place of the kernels."""
    directory = tmp_path / "cpu"
    directory.mkdir()
    (directory / "one.h").write_text("int two();\n")
    (directory / "one.cpp").write_text(
        '#include "one.h"\nextern "C" __attribute__((visibility("default"))) int one() { return two() - 1; }\n'
    )
    (directory / "avx2_two.cpp").write_text(
        '#include "one.h"\n#ifdef __AVX2__\nint two() { return 2; }\n#else\nint two() { return 0; }\n#endif\n'
    )
    monkeypatch.setattr(tool, "SOURCES", directory)
    return directory


def value(path: Path) -> int:
    """What the library's function returns, asked in a process of its own: a loaded library stays."""
    code = f"import ctypes; print(ctypes.CDLL({str(path)!r}).one())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def objects(out: Path) -> set[str]:
    return {path.name for path in out.with_suffix(".objects").glob("*.o")}


def test_only_what_changed_is_compiled_again(sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "lib.so"
    assert tool.build(out) == out
    assert value(out) == (1 if os.uname().machine == "x86_64" else -1)  # the AVX2 file has its own flags
    before, stamp = objects(out), out.stat().st_mtime_ns
    tool.build(out)
    assert out.stat().st_mtime_ns == stamp
    (sources / "one.cpp").write_text((sources / "one.cpp").read_text().replace("- 1", "+ 40"))
    tool.build(out)
    assert value(out) in (42, 40)
    assert len(objects(out)) == 2
    assert len(objects(out) & before) == 1
    (sources / "one.h").write_text("int two();\nint three();\n")
    tool.build(out)
    assert not objects(out) & before


def test_warnings_are_kept(sources: Path, tmp_path: Path) -> None:
    (sources / "one.cpp").write_text((sources / "one.cpp").read_text() + "void f() { int unused; }\n")
    out = tool.build(tmp_path / "lib.so")
    assert "unused" in json.loads(out.with_suffix(".json").read_text())["warnings"]


def test_the_kernels_compile_without_warnings() -> None:
    found = json.loads(library.require().with_suffix(".json").read_text())
    assert found["warnings"] == ""


def test_an_error_is_one_sentence_and_leaves_nothing(sources: Path, tmp_path: Path) -> None:
    (sources / "one.cpp").write_text("int one() { return undeclared; }\n")
    with pytest.raises(tool.BuildError, match=r"could not compile one.cpp: .*undeclared"):
        tool.build(tmp_path / "lib.so")
    (sources / "one.cpp").write_text('#include "one.h"\nint nowhere();\nint one() { return nowhere(); }\n')
    with pytest.raises(tool.BuildError, match=r"could not compile the library: .*nowhere"):
        tool.build(tmp_path / "lib.so")
    assert not (tmp_path / "lib.so").exists()


def test_sanitizer_and_emulation_are_other_libraries(tmp_path: Path, sources: Path) -> None:
    (sources / "avx512_x.cpp").write_text(
        '#if defined(TAILCUT_EMULATE) && !defined(__AVX512F__)\nextern "C" __attribute__((visibility("default"))) '
        "int one() { return 512; }\n#endif\n"
    )
    (sources / "one.cpp").write_text('#include "one.h"\nint add(int a, int b) { return a + b; }\n')
    assert value(tool.build(tmp_path / "emulated.so", emulate=True)) == 512
    out = tool.build(tmp_path / "checked.so", sanitize="undefined")
    assert b"__ubsan" in out.read_bytes()


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(tool.BuildError, match="CXX names no-such-compiler, which does not run; on Debian: apt-get"):
        tool.find_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "none.so")
    assert "no C++ compiler" in str(library.problem())
    assert library.find() is None
    with pytest.raises(MissingEnvironmentError, match=r"cannot be compiled: no C\+\+ compiler"):
        library.compile_again()


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"not a library")
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "broken.so")
    with pytest.raises(MissingEnvironmentError, match="does not load here"):
        library.require()


@pytest.mark.slow
def test_tailcut_installs_without_a_compiler(tmp_path: Path) -> None:
    """The package is there, the engine says why it is not."""
    root = Path(__file__).resolve().parents[2]
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, tree)
    ignored = shutil.ignore_patterns("__pycache__", "libtailcut_cpu.*", "*.egg-info")
    for name in ("compress", "export", "kernels", "bench", "src"):
        shutil.copytree(root / name, tree / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tree)]
    subprocess.run(command, env={**os.environ, "CXX": "no-such-compiler"}, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-t", str(tmp_path / "x"), str(wheel)], check=True
    )
    code = "from tailcut.kernels import library; print(library.LIBRARY, library.problem())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "x")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path / "x"))
    assert "tailcut engines install tailcut" in done.stdout
