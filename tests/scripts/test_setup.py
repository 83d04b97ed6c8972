"""scripts/setup.sh: what it says when it cannot work, and that a second run does nothing."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


PARTS = ("pyproject.toml", "constraints.txt", "scripts/setup.sh", "setup.py", "kernels/build.py")


def setup(root: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    command = ["sh", str(root / "scripts" / "setup.sh")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with what setup.sh looks at."""
    root = tmp_path / "tree"
    (root / "scripts").mkdir(parents=True)
    (root / "src" / "tailcut" / "compress").mkdir(parents=True)
    (root / "kernels" / "cpu").mkdir(parents=True)
    (root / "kernels" / "cpu" / "fuzz").mkdir()  # what is in there is not compiled into the library
    (root / "kernels" / "cpu" / "a.cpp").write_text("int a;\n")
    (root / "kernels" / "cpu" / "a.h").write_text("extern int a;\n")
    for name in PARTS:
        (root / name).write_bytes((ROOT / name).read_bytes())
    return root


def fake_environment(root: Path, stamp: str) -> Path:
    """An environment whose pip would be noticed: its python fails whatever it is asked."""
    venv = root / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "tailcut"):
        (venv / "bin" / name).write_text("#!/bin/sh\nexit 77\n")
        (venv / "bin" / name).chmod(0o755)
    (venv / ".tailcut-setup").write_text(stamp)
    return venv


def stamp_of(root: Path) -> str:
    parts = [root / name for name in (*PARTS, "kernels/cpu/a.cpp", "kernels/cpu/a.h")]
    path = f"{root.resolve()}\n".encode()
    return hashlib.sha256(path + b"".join(part.read_bytes() for part in parts)).hexdigest() + "\n"


def test_second_run_does_nothing(tree: Path) -> None:
    fake_environment(tree, stamp_of(tree))
    done = setup(tree, VENV=".venv")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_environment_of_another_checkout_is_noticed(tree: Path) -> None:
    """An editable install points to one checkout; its stamp must not pass in a second one."""
    fake_environment(tree, stamp_of(tree))
    moved = tree.rename(tree.with_name("second"))
    assert setup(moved, VENV=".venv").returncode != 0


@pytest.mark.parametrize("changed", ["constraints.txt", "setup.py", "kernels/cpu/a.cpp", "kernels/cpu/a.h"])
def test_changes_are_noticed(tree: Path, changed: str) -> None:
    fake_environment(tree, stamp_of(tree))
    with (tree / changed).open("a") as stream:
        stream.write("# x==1\n")
    done = setup(tree, VENV=".venv")
    assert done.returncode != 0  # it went on to use the environment's python, which fails


@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_no_python_is_one_sentence(python: str, tree: Path) -> None:
    done = setup(tree, PYTHON=python, VENV=".venv")
    assert done.returncode == 4
    assert "no Python 3.11, 3.12 or 3.13 found" in done.stderr
    assert not (tree / ".venv").exists()


def test_clone_without_links_is_one_sentence(tree: Path) -> None:
    (tree / "src" / "tailcut" / "compress").rmdir()
    (tree / "src" / "tailcut" / "compress").write_text("../../compress")
    done = setup(tree, PYTHON=sys.executable)
    assert done.returncode == 4
    assert "clone again with: git clone -c core.symlinks=true" in done.stderr


@pytest.mark.parametrize("script", [".ci/run", *(str(p.relative_to(ROOT)) for p in (ROOT / "scripts").rglob("*.sh"))])
def test_shell_scripts_parse(script: str) -> None:
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", str(ROOT / script)], check=True)
    assert (ROOT / script).read_text().startswith(("#!/bin/sh\n", "#!/usr/bin/env bash\n"))
