"""DeepSparse with int8 matrices in the pattern it runs best; in the environment of `deepsparse`, evaluation only."""

from dataclasses import replace
from pathlib import Path

from tailcut.bench import variants
from tailcut.bench.deepsparse_quantise import quantise
from tailcut.bench.engines import Phase, deepsparse
from tailcut.bench.worker import Launch
from tailcut.results import Workload

SEPARATE_PHASES = True
COMPRESSES = True
LICENCE = deepsparse.LICENCE
# int8 weights and static uint8 activations whose ranges come from random tokens; a wrong pattern gives errors of 1
TOLERANCE = 0.25
RECIPE = deepsparse.RECIPE
_NAME = "deepsparse-int8"

available = deepsparse.available
where = deepsparse.where
refuse = deepsparse.refuse
engagement = deepsparse.engagement


def directory(package: Path) -> Path:
    return variants.directory(package, _NAME)


def prepare(package: Path) -> None:
    static = deepsparse.directory(package)
    variants.make(package, _NAME, lambda out: quantise(static, out), source=static)


def unfit(package: Path, workload: Workload) -> str | None:
    static = deepsparse.directory(package)
    return deepsparse.unfit(package, workload) or variants.missing(package, _NAME, static)


def launch(package: Path, phase: Phase, workload: Workload) -> Launch:
    plain = deepsparse.launch(package, phase, workload)
    made = directory(package)
    # zero codes were counted when they were written: the file mixes types, the worker cannot count words in it
    own = {"package": str(made.resolve()), "zeros": variants.facts(made).get("zeros", 0)}
    return replace(plain, settings={**plain.settings, **own})
