"""onnxruntime-web, in a browser or under Node: ONNX Runtime compiled to WebAssembly.

It opens what a plain ONNX Runtime opens, in the 4 GB that WebAssembly addresses: a bitmask package expands while it loads, and
one of 106 M block weights did not fit. So dense comes first, and bitmask is for small models. The data file is handed to
it by name.
"""

from pathlib import Path
from typing import Final

from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, Variant, settled

SUMMARY: Final = "onnxruntime-web under Node or in a browser: dense speed, models that fit 4 GB."
VARIANT: Final[Variant] = "onnx"
LAYOUTS: Final[tuple[Layout, ...]] = ("dense", "bitmask")


def settle(asked: Asked) -> Storage:
    return settled("web", asked, LAYOUTS)


def unfit(spec: DecoderSpec) -> str | None:
    return None


def finish(directory: Path, spec: DecoderSpec) -> None:
    """Nothing is added."""
