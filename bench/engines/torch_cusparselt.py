"""PyTorch's own 2:4 (`to_sparse_semi_structured`, cuSPARSELt) in the same lean GPU loop: what stock sparsity gives."""

from pathlib import Path
from typing import Final

from tailcut.bench.engines import Phase, torch_cuda_24, torch_cuda_dense
from tailcut.bench.worker import Launch
from tailcut.results import Workload

SEPARATE_PHASES = False
COMPRESSES = True
LICENCE = ""
TOLERANCE = torch_cuda_dense.TOLERANCE
_ENGINE: Final = "cusparselt"

available = torch_cuda_dense.available
where = torch_cuda_dense.where
directory = torch_cuda_dense.directory
refuse = torch_cuda_dense.refuse
unfit = torch_cuda_24.unfit
engagement = torch_cuda_24.engagement


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return torch_cuda_dense.launch_of(_ENGINE, package, workload)
