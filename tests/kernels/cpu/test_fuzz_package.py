"""Whole packages with changed dimensions, types, bytes, places and inputs, in a process of their own (package_cases.py)."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def run(package: Path, scratch: Path, first: int, count: int) -> tuple[int, int]:
    """(packages that ran, packages refused); fails where the process crashed or raised anything unexpected."""
    program = Path(__file__).with_name("package_cases.py")
    words = [sys.executable, str(program), str(package), str(scratch), str(first), str(count)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]} ended with {done.returncode}: {done.stderr[-3000:]}"
    found = re.fullmatch(r"(\d+) ran, (\d+) refused", lines[-1])
    assert found
    return int(found[1]), int(found[2])


def test_damaged_packages_are_refused_or_run(kernel_library: Path, package: Path, tmp_path: Path) -> None:
    ran, refused = run(package, tmp_path / "copy", 0, 60)
    assert ran + refused == 60
    assert refused > 20


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["float16", "bfloat16", "int8", "int4"])
def test_many_damaged_packages(
    kernel_library: Path, fused_package: Callable[..., Path], tmp_path: Path, weights: str
) -> None:
    ran, refused = run(fused_package("llama", weights), tmp_path / "copy", 1000, 500)
    assert ran + refused == 500
    assert refused > 150
