"""torch-cuda-2:4: the lean GPU loop on tailcut's own 2:4 kernels (kernels/gpu), at the precision that the package stores.

Matrices that are not cut run dense, as in `torch-cuda-dense`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tailcut.bench.engines import Phase, counted, torch_cuda_dense
from tailcut.bench.package_weights import not_two_four
from tailcut.bench.worker import Launch
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = True
LICENCE = ""
TOLERANCE = torch_cuda_dense.TOLERANCE
_ENGINE: Final = "2:4"

available = torch_cuda_dense.available
where = torch_cuda_dense.where
directory = torch_cuda_dense.directory
refuse = torch_cuda_dense.refuse


def unfit(package: Path, workload: Workload) -> str | None:
    return torch_cuda_dense.unfit(package, workload) or not_two_four(package)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return torch_cuda_dense.launch_of(_ENGINE, package, workload)


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    return counted(evidence, zeros, idle="no matrix ran as 2:4", what="zeros")
