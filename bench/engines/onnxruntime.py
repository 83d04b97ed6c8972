"""ONNX Runtime: runs any package, folds zeros to dense. It is the baseline and the noise control."""

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tailcut.bench.engines import Phase
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
SERVES = True  # its worker runs several sequences over one copy of the weights
TOLERANCE = 0.0  # it is the reference


def available() -> str | None:
    if find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed; install tailcut with its dependencies"
    return None


def where() -> str:
    return sys.executable


def directory(package: Path) -> Path:
    return package


def unfit(package: Path, workload: Workload) -> str | None:
    if not (package / "model.onnx").is_file():
        return f"{package.name} holds no model.onnx; make the package with `tailcut export`"
    return None


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    settings = {"package": str(package), "threads": workload.threads, "cpus": pinned_cpus(workload.threads)}
    return Launch(where(), SCRIPTS / "onnxruntime_worker.py", settings)


def refuse(evidence: Mapping[str, Any]) -> str | None:
    return None


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    if evidence.get("sparse_kernel") is True:
        return Engagement(True, str(evidence.get("kernels")))
    return Engagement(False, "no sparse kernel ran: ONNX Runtime folds the zeros to dense weights")
