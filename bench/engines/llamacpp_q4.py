"""llama.cpp with Q4_0 matrices: its plain int4, in the same environment as `llamacpp-q8`."""

from pathlib import Path

from tailcut.bench import gguf, variants
from tailcut.bench.engines import Phase, llamacpp_q8
from tailcut.bench.worker import Launch
from tailcut.results import Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
# 4-bit blocks of 32 are 9 % off in the L2 norm, a matrix; a wrong layout gives errors of 1 and more
TOLERANCE = 0.75
RECIPE = llamacpp_q8.RECIPE
_NAME = "llamacpp-q4"

available = llamacpp_q8.available
where = llamacpp_q8.where
refuse = llamacpp_q8.refuse
engagement = llamacpp_q8.engagement


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    variants.make(package, _NAME, lambda out: gguf.convert(package, out, 4))


def unfit(package: Path, workload: Workload) -> str | None:
    return llamacpp_q8.config_unfit(package) or variants.missing(package, _NAME)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return llamacpp_q8.launch_of(directory(package), workload)
