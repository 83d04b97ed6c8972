"""ONNX Runtime's own int8: DynamicQuantizeMatMul everywhere, the output matrix included, on the best dense graph."""

from pathlib import Path

from tailcut.bench import variants
from tailcut.bench.engines import Phase, onnxruntime_fused
from tailcut.bench.ort_quantise import quantise
from tailcut.bench.worker import Launch
from tailcut.results import Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
SERVES = True  # its worker runs several sequences over one copy of the weights
# 7-bit weights, one scale a column, and uint8 activations with one scale a row of the batch: 0.15 of the logits in the L2
# norm was measured (SmolLM2-135M, 8 random tokens); a wrong layout or scale gives errors of 1
TOLERANCE = 0.25
_NAME = "onnxruntime-int8"

available = onnxruntime_fused.available
where = onnxruntime_fused.where
refuse = onnxruntime_fused.refuse
engagement = onnxruntime_fused.engagement


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    variants.make(package, _NAME, lambda out: quantise(package, out, 8))


def unfit(package: Path, workload: Workload) -> str | None:
    return onnxruntime_fused.unfit(package, workload) or variants.missing(package, _NAME)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return onnxruntime_fused.launch(directory(package), phase, workload)
