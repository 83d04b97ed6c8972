"""Engines: one file each, found by listing this folder. A module here satisfies `Engine`.

An engine module says whether it can run here, how its worker is started, and what its evidence means. It never
imports the engine: that happens only in the worker's process (`bench/workers/`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

from tailcut import plugins
from tailcut.bench.worker import Launch
from tailcut.results import Engagement, Workload

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")


class Engine(Protocol):
    """What a file in this folder provides.

    It may also say `SERVES = True`: its worker answers `serve`, many sequences over one copy of the weights.
    """

    SEPARATE_PHASES: bool  # True: prefill and decode are different graphs, each in a fresh process
    COMPRESSES: bool  # True: the engine holds sparse weights compressed, in a format of its own
    LICENCE: str  # a sentence for reports, or ""
    TOLERANCE: float  # largest |logits - ONNX Runtime's| / max |ONNX Runtime's| on the same weights

    def available(self) -> str | None:
        """None if the engine can run on this machine, else why not and what to do."""
        ...

    def where(self) -> str:
        """The interpreter the worker runs in."""
        ...

    def directory(self, package: Path) -> Path:
        """The directory the engine opens for a package."""
        ...

    def unfit(self, package: Path, workload: Workload) -> str | None:
        """None if this package can be measured with this workload, else why not."""
        ...

    def launch(self, package: Path, phase: Phase, workload: Workload) -> Launch:
        """How to start the worker and what its `open` command gets."""
        ...

    def refuse(self, evidence: Mapping[str, Any]) -> str | None:
        """None if what the worker described may be timed, else why not."""
        ...

    def engagement(self, evidence: Mapping[str, Any], zeros: int) -> Engagement:
        """Whether the evidence of the sparse side proves a sparse kernel; `zeros`: weights cut by the manifest."""
        ...


_SPELT: Final = {"torch-cuda-24": "torch-cuda-2:4"}  # a file's name has no colon


def counted(evidence: Mapping[str, Any], zeros: int, *, idle: str, what: str) -> Engagement:
    """The proof of a worker that says whether sparse kernels ran and counts the zeros of what they read.

    idle: what to say of a worker whose kernels did not run; what: what became of the zeros, "zeros left out".
    """
    seen = int(evidence.get("zeros_seen") or 0)
    if zeros == 0:
        return Engagement(False, "the sparse package has no zeros that its manifest knows of")
    if evidence.get("sparse_kernel") is not True:
        return Engagement(False, f"{idle}: {evidence.get('kernels')}")
    if seen < zeros:
        return Engagement(False, f"the package's matrices hold {seen} zeros, the manifest promises {zeros}")
    return Engagement(True, f"{evidence.get('kernels')}; {seen} {what} ({zeros} promised)")


def names() -> tuple[str, ...]:
    return tuple(_SPELT.get(name, name) for name in plugins.names(__name__))


def load(name: str) -> Engine:
    return cast(Engine, plugins.load(__name__, name.replace(":", "")))
