"""The check of single matrices notices what it is for: another scale, order or sign."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailcut.kernels import parity
from tailcut.kernels.library import CpuMatrix
from tailcut.kernels.package import open_package
from tailcut.kernels.stored import Stored, stored_matrices

from .test_stored import quantised  # noqa: F401 a fixture


def test_right_matrices_pass(package: Path, quantised: Path) -> None:  # noqa: F811
    assert parity.worst(stored_matrices(open_package(package)), limit=20) <= 1
    assert parity.worst(stored_matrices(open_package(quantised)), limit=20) <= 1


@pytest.mark.parametrize("wrong", ["scale", "sign", "order"])
def test_wrong_matrices_do_not(quantised: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    matrix = next(stored_matrices(open_package(quantised)))
    real = parity.in_kernels

    def damaged(given: Stored) -> CpuMatrix:
        scales = np.asarray(given.scales)
        change = {"scale": scales * np.float32(1.05), "sign": -scales, "order": scales[::-1]}[wrong]
        return real(replace(given, scales=np.ascontiguousarray(change, np.float32)))

    assert parity.worst([matrix]) <= 1
    monkeypatch.setattr(parity, "in_kernels", damaged)
    assert parity.worst([matrix]) > 1
