"""ONNX Runtime, float32, on the package's best graph: the dense baseline at its best.

Where the package has a fused graph (grouped attention, cache in place) it is that one, run by ONNX Runtime alone;
zeros are written out or folded to dense, no kernel of tailcut takes part.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailcut.bench.engines import Phase, onnxruntime
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.ort_quantise import GRAPHS, graph_of
from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
SERVES = True  # its worker runs several sequences over one copy of the weights
# float32 with other orders of summation than the standard graph's
TOLERANCE = 1e-4


available = onnxruntime.available
where = onnxruntime.where
directory = onnxruntime.directory
refuse = onnxruntime.refuse


def unfit(package: Path, workload: Workload) -> str | None:
    if graph_of(package) is None:
        return f"{package.name} holds no {GRAPHS[-1]}; make the package with `tailcut export`"
    return None


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    graph = graph_of(package) or package / GRAPHS[-1]
    settings = {"graph": str(graph), "threads": workload.threads, "cpus": pinned_cpus(workload.threads)}
    return Launch(where(), SCRIPTS / "ort_graph_worker.py", settings)


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    return Engagement(False, "no sparse kernel ran: ONNX Runtime works on dense matrices")
