"""tailcut's own runtime: both graphs, zeros left out, kernels that multiply what is stored."""

from pathlib import Path
from typing import Final

from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, Variant, settled

SUMMARY: Final = "tailcut's own runtime and kernels; any ONNX Runtime opens its model.onnx as well."
VARIANT: Final[Variant] = "onnx"
LAYOUTS: Final[tuple[Layout, ...]] = ("bitmask", "dense")


def settle(asked: Asked) -> Storage:
    return settled("tailcut", asked, LAYOUTS, fused=True)


def unfit(spec: DecoderSpec) -> str | None:
    return None


def finish(directory: Path, spec: DecoderSpec) -> None:
    """Nothing is added."""
