"""Which slow tests a change calls for: `COVERS` maps paths to the slow tests that exercise them.

    python scripts/slow_tests.py            the tests for what changed since the merge base, one a line
    python scripts/slow_tests.py FILE…      the tests for these files
    python scripts/slow_tests.py --interop  the same for tests of foreign clients (`INTEROP`), which CI runs apart

A change is compared with the merge base with the main branch; on the main branch itself with the commit before.
Where history gives no base (a shallow clone), every slow test is named. Prefixes match whole path components,
the first column may be a folder or a file. Add a line when you add a slow test: a test checks that each slow test file
is reached by some line.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
COVERS: Final[dict[str, tuple[str, ...]]] = {
    "compress": ("tests/compress", "tests/test_pipeline.py"),
    "export": ("tests/export", "tests/test_pipeline.py"),
    "kernels": ("tests/kernels", "tests/export", "tests/test_pipeline.py"),
    "bench": ("tests/bench", "tests/test_pipeline.py"),
    "bench/outputs": ("tests/ci",),
    "docs/ci": ("tests/ci",),
    ".github": ("tests/ci",),
    "kernels/gpu": ("tests/kernels/gpu", "tests/bench"),
    "src/tailcut": ("tests/lobby", "tests/test_pipeline.py"),
    "src/tailcut/sweep.py": ("tests/test_sweep.py", "tests/test_fleet.py"),
    "src/tailcut/sweep_work.py": ("tests/test_sweep.py",),
    "src/tailcut/stages.py": ("tests/test_sweep.py",),
    "bench/many.py": ("tests/test_sweep.py",),
    "src/tailcut/fleet.py": ("tests/test_fleet.py",),
    "benchmarks": ("tests/benchmarks",),
    "scripts/docker": ("tests/scripts",),
    "scripts/setup.sh": ("tests/scripts",),
    "setup.py": ("tests/kernels", "tests/scripts"),
    "Dockerfile": ("tests/scripts",),
    "constraints.txt": ("tests",),
    "pyproject.toml": ("tests",),
}

# tests marked interop: they need the environment of a client and skip without it
INTEROP: Final[dict[str, tuple[str, ...]]] = {
    "bench/clients": ("tests/bench/clients",),
    "bench/workers": ("tests/bench/clients",),
    "bench/environment.py": ("tests/bench/clients",),
    "export": ("tests/bench/clients",),
    "compress/quantised_dense.py": ("tests/bench/clients",),
    "compress/structured": ("tests/bench/clients/test_shapes_and_recovered.py",),
    "compress/recovery": ("tests/bench/clients/test_shapes_and_recovered.py",),
    "constraints.txt": ("tests/bench/clients",),
}


def changed_files() -> list[str] | None:
    """Paths that differ from the base commit; None when there is no base to compare with."""
    base = _git("merge-base", "HEAD", "origin/main") or _git("merge-base", "HEAD", "main")
    if base == _git("rev-parse", "HEAD"):
        base = _git("rev-parse", "--verify", "HEAD~1")
    return _git("diff", "--name-only", base).split("\n") if base else None


def covering(files: Iterable[str], covers: Mapping[str, tuple[str, ...]] = COVERS) -> list[str]:
    """Test paths (existing ones, none inside another) that cover the given files or are among them."""
    wanted: set[str] = set()
    for file in files:
        for prefix, tests in covers.items():
            if file == prefix or file.startswith(f"{prefix}/"):
                wanted.update(tests)
        own = covers is COVERS or any(file.startswith(f"{path}/") for tests in covers.values() for path in tests)
        if own and file.startswith("tests/") and Path(file).name.startswith("test_"):
            wanted.add(file)
    present = {path for path in wanted if (ROOT / path).exists()}
    return sorted(path for path in present if not any(path.startswith(f"{other}/") for other in present))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> None:
    interop = "--interop" in sys.argv[1:]
    files = [word for word in sys.argv[1:] if not word.startswith("--")] or changed_files()
    for path in ["tests"] if files is None else covering(files, INTEROP if interop else COVERS):
        print(path)


if __name__ == "__main__":
    main()
