"""OpenVINO with int4 weights in groups of 128; in the environment of `openvino-int8`."""

from pathlib import Path

from tailcut.bench import variants
from tailcut.bench.engines import Phase, onnxruntime, openvino_int8
from tailcut.bench.worker import Launch
from tailcut.results import Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
# 4-bit weights in groups of 128 are 11 % off in the L2 norm, a matrix; a wrong layout gives errors of 1 and more
TOLERANCE = 0.75
RECIPE = openvino_int8.RECIPE
_NAME = "openvino-int4"

available = openvino_int8.available
where = openvino_int8.where
refuse = openvino_int8.refuse
engagement = openvino_int8.engagement


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    variants.make(package, _NAME, lambda out: openvino_int8.convert(package, out, 4))


def unfit(package: Path, workload: Workload) -> str | None:
    return onnxruntime.unfit(package, workload) or variants.missing(package, _NAME)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return openvino_int8.launch_of(directory(package), workload)
