"""ONNX Runtime's own int8: DynamicQuantizeMatMul everywhere, the output matrix included, on the best dense graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailcut.bench import variants
from tailcut.bench.engines import Phase, onnxruntime_fused
from tailcut.bench.ort_quantise import quantise
from tailcut.bench.worker import Launch
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
# 7-bit weights, one scale a column, and uint8 activations with one scale a row of the batch: the largest logit's
# error was measured at TOL8; a wrong layout or scale gives errors of 1
TOLERANCE = 0.25
_NAME = "onnxruntime-int8"

available = onnxruntime_fused.available
where = onnxruntime_fused.where


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    variants.make(package, _NAME, lambda out: quantise(package, out, 8))


def unfit(package: Path, workload: Workload) -> str | None:
    return onnxruntime_fused.unfit(package, workload) or variants.missing(package, _NAME)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return onnxruntime_fused.launch(directory(package), phase, workload)


def refuse(evidence: Mapping[str, Any]) -> str | None:
    return None


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    return onnxruntime_fused.engagement(evidence, zeros)
