"""OpenVINO: its reader knows no model-local functions, so their bodies are written into the graph, and zeros are kept.

Quantised matrices stay integers: Cast, Mul and MatMul is the form that the CPU plugin multiplies as compressed weights, and
the one from which a statically quantised graph, whose sparse weights it can hold compressed (AMX), is made.
"""

from pathlib import Path
from typing import Final

import onnx
from onnx import inliner

from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, Variant, settled
from tailcut.kernels.package import MODEL_NAME
from tailcut.kernels.stored import DOMAIN

SUMMARY: Final = "OpenVINO: one graph of standard operators, dense zeros, int8 matrices as integers."
VARIANT: Final[Variant] = "onnx"
LAYOUTS: Final[tuple[Layout, ...]] = ("dense",)


def settle(asked: Asked) -> Storage:
    return settled("openvino", asked, LAYOUTS)


def unfit(spec: DecoderSpec) -> str | None:
    return None


def finish(directory: Path, spec: DecoderSpec) -> None:
    """Write the bodies of tailcut's functions into the graph."""
    path = directory / MODEL_NAME
    model = onnx.load(path, load_external_data=False)
    if not model.functions:
        return
    whole = inliner.inline_local_functions(model)
    kept = [entry for entry in whole.opset_import if entry.domain != DOMAIN]
    del whole.opset_import[:]
    whole.opset_import.extend(kept)
    path.write_bytes(whole.SerializeToString(deterministic=True))
