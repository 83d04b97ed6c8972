"""DeepSparse 1.8.0: the sparse CPU engine of AlphaPruning's latency table, for evaluation only.

It runs in an environment of its own (Python 3.8 to 3.11, numpy < 2), made by `tailcut engines install
deepsparse`, on the static-shape variant of a package that lies beside it as `NAME-deepsparse`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailcut.bench.engines import Phase
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = True
COMPRESSES = True
LICENCE = "DeepSparse is licensed for evaluation in development and testing only, not for production use."
# float32 against float32 with other summation orders: measured 3e-6 to 6e-6; wrong environments give > 1
TOLERANCE = 1e-4
RECIPE = Recipe(
    name="deepsparse",
    lock=Path(__file__).with_name("deepsparse.lock"),
    pythons=((3, 11), (3, 10), (3, 9), (3, 8)),
    probe="import numpy, deepsparse; assert numpy.__version__ < '2'; print(deepsparse.__version__)",
    environment={"NM_DISABLE_ANALYTICS": "1"},
    licence=LICENCE,
)
_SUFFIX = "-deepsparse"


def available() -> str | None:
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def directory(package: Path) -> Path:
    return package.with_name(package.name + _SUFFIX)


def unfit(package: Path, workload: Workload) -> str | None:
    if workload.batch != 1:
        return f"the static package is for batch 1, the workload asks for batch {workload.batch}"
    static = directory(package)
    missing = [name for name in ("decode.onnx", "prefill.onnx", "model.onnx.data") if not (static / name).is_file()]
    if missing:
        return f"{static.name} has no {missing[0]}; make it with `tailcut export --variant deepsparse`"
    return None


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    settings = {
        "package": str(directory(package).resolve()),
        "phase": phase,
        "threads": workload.threads,
        "cpus": pinned_cpus(workload.threads),
        "window": workload.context if phase == "decode" else workload.prompt_tokens,
    }
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD")
    environment = dict(RECIPE.environment) | {"NUM_CORES": str(workload.threads), "PATH": os.defpath}
    return Launch(where(), SCRIPTS / "deepsparse_worker.py", settings, environment, drop)


def refuse(evidence: Mapping[str, Any]) -> str | None:
    fraction = evidence.get("supported_fraction")
    if fraction != 1.0:
        return f"DeepSparse runs only {fraction} of the graph itself, 1.0 is needed; the rest would be unaccelerated"
    return None


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    fraction, seen = evidence.get("supported_fraction"), int(evidence.get("zeros_seen") or 0)
    if fraction != 1.0:
        return Engagement(False, f"supported fraction is {fraction}, not 1.0")
    if zeros == 0:
        return Engagement(False, "the sparse package has no zeros that its manifest knows of")
    if seen < zeros:
        return Engagement(False, f"the engine's weight file holds {seen} zeros, the manifest promises {zeros}")
    return Engagement(True, f"supported fraction 1.0, {seen} zeros in the weights it compiled ({zeros} promised)")
