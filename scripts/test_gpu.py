"""Run the tests of the GPU kernels on this machine's GPU and write what became of each.

    python scripts/test_gpu.py                                   # benchmarks/results/gpu_tests.json
    python scripts/test_gpu.py -o /tmp/gpu_tests.json -k gemv    # further words go to pytest

Every test that is marked gpu runs, its kernels compiled; what is not marked runs without a GPU, in CI (Triton's
interpreter). Compiling takes most of the time, so several processes share the tests. Without a GPU nothing is written
and the exit code is 4; otherwise it is pytest's, the worst of all processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pytest

from tailcut.bench.gpu_device import describe_gpu, gpu_problem
from tailcut.bench.machine import describe_machine, usable_cpus
from tailcut.errors import EXIT_ENVIRONMENT
from tailcut.files import write_file

ROOT: Final = Path(__file__).resolve().parent.parent
OUTPUT: Final = ROOT / "benchmarks" / "results" / "gpu_tests.json"
FOLDER: Final = "tests/kernels/gpu"
_WORST: Final = ("passed", "skipped", "failed")  # of the three phases of a test, the worst counts


class Outcomes:
    """A pytest plugin: the outcome and the seconds of each test that ran, by its id, and why it was left out."""

    def __init__(self, part: int = 0, parts: int = 1) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self.share = slice(part, None, parts)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep this process's share of what belongs to the GPU."""
        kept = [item for item in items if item.get_closest_marker("gpu")][self.share]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seen = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        seen["seconds"] = round(seen["seconds"] + report.duration, 3)
        if _WORST.index(report.outcome) > _WORST.index(seen["outcome"]):
            seen["outcome"] = report.outcome
            seen["reason"] = _reason(report)


def _reason(report: pytest.TestReport) -> str:
    """The last line of what a test said when it failed or was skipped."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.strip().splitlines()[-1][:300] if text.strip() else ""


def record(tests: dict[str, dict[str, Any]], status: int, seconds: float) -> dict[str, Any]:
    """What is written: machine, GPU, versions and commit, and every test."""
    return {
        "what": "tests of the GPU kernels, compiled and run on a GPU",
        "machine": asdict(describe_machine()),
        "gpu": describe_gpu(),
        "exit_status": status,
        "seconds": round(seconds, 1),
        "counts": dict(Counter(test["outcome"] for test in tests.values())),
        "tests": tests,
    }


def run_share(part: int, parts: int, words: Sequence[str], output: Path) -> int:
    """This process's tests; their outcomes go to `output`. pytest's exit status, 0 for an empty share."""
    outcomes = Outcomes(part, parts)
    status = int(pytest.main(["-q", *marked_files(), *words], plugins=[outcomes]))
    write_file(output, json.dumps(outcomes.tests).encode())
    return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status


def run_shares(jobs: int, words: Sequence[str]) -> tuple[dict[str, dict[str, Any]], int]:
    """All tests in `jobs` processes -> their outcomes by test id, and the worst exit status."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{part}.json" for part in range(jobs)]
        command = [sys.executable, str(Path(__file__).resolve())]
        running = [
            subprocess.Popen([*command, "--share", f"{part}/{jobs}", "-o", str(file), *words])
            for part, file in enumerate(files)
        ]
        status = max(abs(process.wait()) for process in running)
        tests: dict[str, dict[str, Any]] = {}
        for file in files:
            tests |= json.loads(file.read_bytes()) if file.exists() else {}
    return dict(sorted(tests.items())), status


def marked_files() -> list[str]:
    """The kernels' folder, and the test files elsewhere in which some test is marked gpu; collecting others takes time."""
    files = (str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py")) if _is_marked(path))
    return [FOLDER, *(file for file in files if not file.startswith(f"{FOLDER}/"))]


def _is_marked(path: Path) -> bool:
    return "pytest.mark.gpu" in path.read_text()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    parser.add_argument("--jobs", type=int, default=max(1, min(8, len(usable_cpus()) // 2)), help="processes")
    parser.add_argument("--share", help=argparse.SUPPRESS)  # what run_shares passes to its processes
    options, words = parser.parse_known_args(arguments)
    if problem := gpu_problem(triton=True):
        print(f"test_gpu: {problem}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    output, began = options.output.resolve(), time.monotonic()
    os.chdir(ROOT)
    if options.share:
        part, _, parts = options.share.partition("/")
        return run_share(int(part), int(parts), words, output)
    tests, status = run_shares(options.jobs, words)
    content = record(tests, status, time.monotonic() - began)
    write_file(output, (json.dumps(content, indent=1) + "\n").encode())
    print(f"test_gpu: {content['counts']}, written to {options.output}")
    return status


if __name__ == "__main__":
    sys.exit(main())
