"""llama.cpp with Q8_0 matrices: its int8, in an environment made from its PyPI sources (compiled for this machine)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailcut.bench import gguf, variants
from tailcut.bench.engines import Phase
from tailcut.bench.environment import Recipe, installed_reason, python_of
from tailcut.bench.machine import pinned_cpus
from tailcut.bench.worker import SCRIPTS, Launch
from tailcut.results import Engagement, Workload

SEPARATE_PHASES = False
COMPRESSES = False
LICENCE = ""
# 8-bit blocks of 32 in weights and activations, a float16 cache
TOLERANCE = 0.25
RECIPE = Recipe(
    name="llamacpp-q8",  # both llama.cpp engines use it
    lock=Path(__file__).with_name("llamacpp.lock"),
    pythons=((3, 11), (3, 12), (3, 13), (3, 10)),
    probe="import llama_cpp; llama_cpp.llama_backend_init(); print(llama_cpp.__version__)",
)
_NAME = "llamacpp-q8"


def available() -> str | None:
    return installed_reason(RECIPE)


def where() -> str:
    return str(python_of(RECIPE))


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    variants.make(package, _NAME, lambda out: gguf.convert(package, out, 8))


def unfit(package: Path, workload: Workload) -> str | None:
    return config_unfit(package) or variants.missing(package, _NAME)


def config_unfit(package: Path) -> str | None:
    path = package / "config.json"
    if not path.is_file():
        return f"{package.name} holds no config.json; make the package with `tailcut export`"
    return gguf.unfit(json.loads(path.read_bytes()))


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    return launch_of(directory(package), workload)


def launch_of(variant: Path, workload: Workload) -> Launch:
    cpus = pinned_cpus(workload.threads)
    settings = {
        "file": str((variant / gguf.FILE_NAME).resolve()),
        "threads": workload.threads,
        "cpus": cpus,
        "context": max(workload.context, workload.prompt_tokens),
        "batch": workload.batch,
    }
    pinned = {"GOMP_CPU_AFFINITY": " ".join(map(str, cpus)), "OMP_NUM_THREADS": str(workload.threads)}
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD")
    return Launch(where(), SCRIPTS / "llamacpp_worker.py", settings, pinned | {"PATH": os.defpath}, drop)


def refuse(evidence: Mapping[str, Any]) -> str | None:
    return None


def engagement(evidence: Mapping[str, Any], zeros: int) -> Engagement:
    return Engagement(False, "no sparse kernel ran: llama.cpp works on dense blocks")
