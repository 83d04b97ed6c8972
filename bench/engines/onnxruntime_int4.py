"""ONNX Runtime's own int4: MatMulNBits (block 32, accuracy_level 4) everywhere, the output matrix included."""

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
# 4-bit weights are 9 % off in the L2 norm, a matrix: 0.39 of the logits was measured (SmolLM2-135M, 8 random tokens; 0.49 with
# float32 products on the same weights, so it is the weights' rounding); a wrong layout or scale gives errors of 1
TOLERANCE = 0.5
_NAME = "onnxruntime-int4"

available = onnxruntime_fused.available
where = onnxruntime_fused.where
refuse = onnxruntime_fused.refuse
engagement = onnxruntime_fused.engagement


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    variants.make(package, _NAME, lambda out: quantise(package, out, 4))


def unfit(package: Path, workload: Workload) -> str | None:
    return onnxruntime_fused.unfit(package, workload) or variants.missing(package, _NAME)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return onnxruntime_fused.launch(directory(package), phase, workload)
