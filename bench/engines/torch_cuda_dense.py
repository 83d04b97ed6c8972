"""tailcut's lean GPU loop with dense bfloat16 matrices: one CUDA graph a step, the faster of cuBLAS and torch.compile.

The baseline of the GPU engines: the same loop, fusions and cache as the sparse ones, zeros written out. It reads the
package itself (no ONNX Runtime), of the Llama family.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tailcut.bench.engines import Phase, onnxruntime
from tailcut.bench.gpu_device import gpu_problem
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
# bfloat16 weights, activations and cache have 8 bits: 2^-9 a rounding, grown over the layers of the model, as for the
# bfloat16 rows of `tailcut.bench.many` (LIMITS)
TOLERANCE = 0.1
FAMILIES: Final = ("llama", "mistral")
_ENGINE: Final = "dense"


def available() -> str | None:
    return gpu_problem(triton=True)


def where() -> str:
    return sys.executable


def directory(package: Path) -> Path:
    return package


def unfit(package: Path, workload: Workload) -> str | None:
    if reason := onnxruntime.unfit(package, workload):
        return reason
    try:
        family = json.loads((package / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return f"{package.name} holds no readable config.json; make the package with `tailcut export`"
    if family not in FAMILIES:
        return f"the GPU loop runs models of the types {' and '.join(FAMILIES)}, this is {family!r}"
    return None


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return launch_of(_ENGINE, package, workload)


def launch_of(engine: str, package: Path, workload: Workload) -> Launch:
    """The worker with the matrices as `engine` has them: dense, 2:4, cusparselt or int4."""
    settings = {
        "package": str(package.resolve()),
        "engine": engine,
        "capacity": max(workload.context, workload.prompt_tokens) + 1,
        "batch": workload.batch,
        "cpus": pinned_cpus(workload.threads),
    }
    return Launch(where(), SCRIPTS / "torch_cuda_worker.py", settings)


def refuse(evidence: Mapping[str, Any]) -> str | None:
    return None


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    return Engagement(False, "no sparse kernel ran: zeros are multiplied like any other weight")
