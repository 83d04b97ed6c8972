"""Dense int4 weights in the same lean GPU loop, by the tinygemm kernel that ships with PyTorch (_weight_int4pack_mm).

It is the kernel behind torchao's tile-packed int4 as well, so torchao itself is not needed. Groups of 128 columns (64 or 32
where rows are narrow) with a scale and a zero point; the output matrix stays bfloat16, as in the other GPU engines.
"""

from pathlib import Path
from typing import Final

from tailcut.bench.engines import Phase, torch_cuda_dense
from tailcut.bench.worker import Launch
from tailcut.results import Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
# 4-bit weights in groups of 128 are 9 % off in the L2 norm, a matrix, which random models of one to three blocks turn into
# 0.35 to 0.65 of the largest logit; a wrong layout gives 1.4 and more (logits that have nothing to do with each other)
TOLERANCE = 0.8
_ENGINE: Final = "int4"

available = torch_cuda_dense.available
where = torch_cuda_dense.where
directory = torch_cuda_dense.directory
unfit = torch_cuda_dense.unfit
refuse = torch_cuda_dense.refuse
engagement = torch_cuda_dense.engagement


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return torch_cuda_dense.launch_of(_ENGINE, package, workload)
