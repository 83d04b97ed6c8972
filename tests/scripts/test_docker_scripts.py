"""The Dockerfile's RUN scripts, run for real outside Docker against a temporary prefix."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tailcut import plugins

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "docker"


def run(script: str, **settings: str) -> str:
    """Run one script; its output, or a failed test that shows it."""
    environment = {**os.environ, "PYTHON": sys.executable, **settings}
    done = subprocess.run(["sh", str(SCRIPTS / script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, f"{script}:\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    run("build.sh", WHEELS=str(directory))
    return directory


@pytest.fixture(scope="module")
def runtime(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix") / "tailcut"
    assert "tailcut 0." in run("runtime.sh", WHEELS=str(wheels), PREFIX=str(prefix))
    return prefix


def test_home_makes_two_directories(tmp_path: Path) -> None:
    owner = f"{os.getuid()}:{os.getgid()}"
    run("home.sh", HOME_DIR=str(tmp_path / "home"), WORK_DIR=str(tmp_path / "work"), OWNER=owner)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "work"}


def test_deepsparse_is_a_no_op_by_default(tmp_path: Path) -> None:
    said = run("deepsparse.sh", TAILCUT_ENGINES=str(tmp_path / "engines"), PREFIX=str(tmp_path / "none"))
    assert "not asked for" in said
    assert list((tmp_path / "engines").iterdir()) == []


@pytest.mark.slow
def test_wheel_holds_each_room_once_and_the_texts(wheels: Path) -> None:
    (wheel,) = wheels.glob("tailcut-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert len(names) == len(set(names))
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tailcut"}
    for room in ("compress", "export", "kernels", "bench"):
        assert f"tailcut/{room}/__init__.py" in names
    sources = {
        f"tailcut/{path.relative_to(ROOT)}"
        for room in ("compress", "export", "kernels", "bench")
        for path in (ROOT / room).rglob("*.py")
    }
    assert sources <= set(names)
    assert {"tailcut/kernels/libtailcut_cpu.so", "tailcut/kernels/cpu/ops.cpp"} <= set(names)
    assert {"tailcut/py.typed", "tailcut/data/calibration.txt", "tailcut/data/heldout.txt"} <= set(names)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # downloads some 200 MB of wheels
def test_runtime_has_no_torch_and_its_commands_work(runtime: Path, tmp_path: Path) -> None:
    """Every command's help, the lists, and making a small model, where torch cannot be imported."""
    tailcut = str(runtime / "bin" / "tailcut")
    commands = ([name, "--help"] for name in plugins.names("tailcut.commands"))
    for words in (["--help"], ["engines", "list"], ["models", "list"], *commands):
        done = subprocess.run([tailcut, *words], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        [tailcut, "engines", "list"], capture_output=True, text=True, cwd=tmp_path, check=True
    ).stdout
    assert ["tailcut", "available"] in [line.split() for line in listed.splitlines()]
    words = ["models", "get", "synthetic-llama", "--like", "tiny", "-o", "m"]
    made = subprocess.run([tailcut, *words], capture_output=True, cwd=tmp_path, check=False)
    assert made.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)  # downloads torch
def test_compress_adds_torch_to_the_runtime(runtime: Path, wheels: Path) -> None:
    run("compress.sh", WHEELS=str(wheels), PREFIX=str(runtime))
    code = "import torch, transformers, tailcut.compress; print(torch.__version__)"
    done = subprocess.run([str(runtime / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2.13.0")
