"""A team's repository with a result to judge, and tiny packages to measure, for jobs that a test runs as a CI would."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tailcut import codec
from tailcut.bench.gate import seeded_result

TinyModel = Callable[..., Path]
POLICIES = {
    "pass": "version: 1\nlimits: {max_size_ratio: 3.0, min_sparsity: 0.4}\n",
    "fail": "version: 1\nlimits: {max_size_ratio: 0.1}\n",
    "inconclusive": "version: 1\nengine: deepsparse\nlimits: {min_speedup: 1.1}\n",  # nobody measured it
    "wrong": "version: 1\nlimits: {max_sise_ratio: 0.1}\n",
}
RUN = (
    "--sparsity", "0.6", "--pruner", "magnitude", "--allocator", "uniform", "--samples", "2", "--seqlen", "32",
    "--engines", "onnxruntime", "--threads", "1", "--prompt-tokens", "8", "--context", "32", "--new-tokens", "8",
    "--blocks", "2", "--text-context", "32", "--windows", "2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Project:
    """A team's repository: result.json and a policy of every outcome."""

    path: Path
    bin: Path  # holds `tailcut`

    def run(self, shell: list[str], script: str, settings: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        """One script in the repository's root, with these settings and little else."""
        own = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.path), "OMP_NUM_THREADS": "1"}
        own["TAILCUT_BENCH_LOCK"] = str(self.bin / "lock")
        file = self.bin / "step.sh"
        file.write_text(script)
        return subprocess.run(
            [*shell, str(file)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.path,
            env={**own, **settings},
            timeout=300,
        )


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="session")
def measured(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny model: dense/ and package/ are its packages."""
    out = tmp_path_factory.mktemp("ci") / "out"
    own = {"OMP_NUM_THREADS": "1", "TAILCUT_BENCH_LOCK": str(out.parent / "lock"), "XDG_CACHE_HOME": str(out.parent)}
    command = [sys.executable, "-m", "tailcut", "run", str(tiny_model("llama")), "-o", str(out), *RUN]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own, timeout=300, check=False)
    assert (out / "result.json").is_file(), done.stderr
    return out


@pytest.fixture
def project(tmp_path: Path) -> Project:
    path, programs = tmp_path / "a team's project", tmp_path / "bin"
    path.mkdir()
    programs.mkdir()
    codec.save(seeded_result(speedup=2.0), path / "result.json")
    for name, text in POLICIES.items():
        (path / f"{name}.yaml").write_text(text)
    executable(programs / "tailcut", f'#!/bin/sh\nexec "{sys.executable}" -m tailcut "$@"\n')
    return Project(path, programs)


@pytest.fixture
def packages(measured: Path, project: Project) -> None:
    """packages/dense and packages/sparse in the project."""
    (project.path / "packages").mkdir()
    (project.path / "packages" / "dense").symlink_to(measured / "dense")
    (project.path / "packages" / "sparse").symlink_to(measured / "package")
