"""OpenVINO with int8 weights (one scale a row, activations as the plugin decides); in an environment of its own.

Its sparse decompression (CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE) needs AMX and matrices whose activations are quantised
statically; compressed weights, which are faster without AMX, do not take it. So this is a dense peer.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tailcut.bench import variants
from tailcut.bench.engines import Phase, onnxruntime
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.stored import open_graph
from tailcut.bench.worker import SCRIPTS, Launch, Worker
from tailcut.errors import InputError
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
# 8-bit weights, one scale a row
TOLERANCE = 0.25
RECIPE = Recipe(
    name="openvino-int8",  # both OpenVINO engines use it
    lock=Path(__file__).with_name("openvino.lock"),
    pythons=((3, 11), (3, 12), (3, 13), (3, 10)),
    probe="import openvino; openvino.Core().get_property('CPU', 'FULL_DEVICE_NAME'); print(openvino.__version__)",
)
_NAME = "openvino-int8"
_SCRIPT = SCRIPTS / "openvino_worker.py"
_DROP = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD")
_CONVERT_TIMEOUT_S = 1800.0


def available() -> str | None:
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    variants.make(package, _NAME, lambda out: convert(package, out, 8))


def convert(package: Path, out: Path, bits: Literal[8, 4]) -> dict[str, Any]:
    """Write OpenVINO's own format into `out`, by OpenVINO in its own process."""
    source = package / "model.onnx"
    if any(node.domain == "tailcut" for node in open_graph(source).model.graph.node):
        raise InputError(f"{package}: has sparse or quantised matrices; make this variant from a dense float32 package")
    launch = Launch(where(), _SCRIPT, {}, {"PATH": os.defpath}, _DROP)
    with Worker(launch, timeout_s=_CONVERT_TIMEOUT_S) as worker:
        made, _ = worker.ask("convert", source=str(source.resolve()), out=str(out.resolve()), bits=bits)
    return {"weights": f"int{bits}, compressed weights", "matrices": made["matrices"]}


def unfit(package: Path, workload: Workload) -> str | None:
    return onnxruntime.unfit(package, workload) or variants.missing(package, _NAME)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return launch_of(directory(package), workload)


def launch_of(variant: Path, workload: Workload) -> Launch:
    file = str((variant / "model.xml").resolve())
    settings = {"file": file, "threads": workload.threads, "cpus": pinned_cpus(workload.threads)}
    return Launch(where(), _SCRIPT, settings, {"PATH": os.defpath}, _DROP)


def refuse(evidence: Mapping[str, Any]) -> str | None:
    return None


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    if evidence.get("sparse_kernel") is True:
        return Engagement(True, str(evidence.get("kernels")))
    return Engagement(False, "no sparse kernel ran: the plugin's kernels are named in the evidence")
