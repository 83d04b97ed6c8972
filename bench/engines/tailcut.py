"""tailcut's own kernels (kernels/cpu) inside ONNX Runtime: sparse and quantised matrices run as the package stores them.

The cache stays in place and norms, rotation and attention are fused where the package has a fused.onnx.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnx

from tailcut.bench.engines import Phase, counted, onnxruntime
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.kernels import library
from tailcut.kernels.package import FUSED_NAME, read_model
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = True
LICENCE = ""
SERVES = True  # its worker runs several sequences over one copy of the weights
# float32 with other orders of summation, against ONNX Runtime's on the same weights
TOLERANCE = 1e-4
# Kernels of quantised matrices round activations to int8, which ONNX Runtime's float arithmetic on the same weights does
# not. How far that moves logits is the model's doing (measured on random tokens, SmolLM2-135M: 0.1 to 0.3 of the largest
# int8, up to 1.6 with 80 % cut by magnitude; perplexity of text moved by 0.04 % and 1.5 %), so whole models only have
# to stay in range, and `refuse` holds single matrices to the weights, where nothing is amplified.
_TOLERANCE_QUANTISED: Final = 3.0
_QUANTISED: Final = ("Int8", "Int4")
# A float16 cache moves logits too (measured on random tokens, SmolLM2-135M: 1.3e-3 of the largest; badly cut models
# amplify rounding some ten times more), a wrong position or mask by their own size.
_TOLERANCE_HALF_CACHE: Final = 5e-2


available = library.problem
where = onnxruntime.where
directory = onnxruntime.directory
unfit = onnxruntime.unfit


def compile_kernels() -> Path:
    """What `tailcut engines install tailcut` does."""
    return library.compile_again()


def tolerance(package: Path) -> float:
    """The largest gap of logits that the stored weights of this package explain."""
    nodes = read_model(package / "model.onnx").graph.node
    quantised = any(node.domain == "tailcut" and node.op_type.endswith(_QUANTISED) for node in nodes)
    if quantised:
        return _TOLERANCE_QUANTISED
    return _TOLERANCE_HALF_CACHE if _keeps_halves(package / FUSED_NAME) else TOLERANCE


def _keeps_halves(fused: Path) -> bool:
    """Whether a decoder's cache will be float16."""
    inputs = read_model(fused).graph.input if fused.is_file() else ()
    return any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in inputs)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    settings = {"package": str(package), "threads": workload.threads, "cpus": pinned_cpus(workload.threads)}
    return Launch(where(), SCRIPTS / "tailcut_worker.py", settings)


def refuse(evidence: Mapping[str, Any]) -> str | None:
    gap = float(evidence.get("matrix_gap", "nan"))
    if not gap <= 1.0:
        return f"a matrix in the kernels is {gap:.2g} times as far from its stored weights as rounding explains"
    return None


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    return counted(evidence, zeros, idle="no sparse kernel ran for a token", what="zeros left out")
