"""A plain ONNX Runtime without tailcut: it runs the function bodies and folds them to dense matrices when it opens them.

The bitmask layout keeps the file small and costs time at load; --layout dense is the other way round.
"""

from pathlib import Path
from typing import Final

from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, Variant, settled

SUMMARY: Final = "A plain ONNX Runtime, which runs the function bodies: small file, dense speed."
VARIANT: Final[Variant] = "onnx"
LAYOUTS: Final[tuple[Layout, ...]] = ("bitmask", "dense")


def settle(asked: Asked) -> Storage:
    return settled("onnxruntime", asked, LAYOUTS)


def unfit(spec: DecoderSpec) -> str | None:
    return None


def finish(directory: Path, spec: DecoderSpec) -> None:
    """Nothing is added: inputs and outputs are named as everyone names them."""
