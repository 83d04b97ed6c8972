"""DeepSparse 1.8: graphs of fixed sizes with zeros written out (`export.static`), which it compiles away itself."""

from pathlib import Path
from typing import Final

from tailcut.errors import InputError
from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage
from tailcut.export.spec import DecoderSpec
from tailcut.export.targets import Asked, Variant

SUMMARY: Final = "DeepSparse 1.8: decode.onnx and prefill.onnx of fixed sizes, dense zeros that it compiles away."
VARIANT: Final[Variant] = "deepsparse"
LAYOUTS: Final[tuple[Layout, ...]] = ("dense",)


def settle(asked: Asked) -> Storage:
    if asked.weights != "float32" or asked.head not in (None, "float32") or asked.kv_cache == "float16":
        raise InputError(
            "the deepsparse target holds float32 weights only, and a float32 cache; "
            "leave out --weights, --head and --kv-cache"
        )
    if asked.layout not in (None, "dense"):
        raise InputError(f"--target deepsparse reads the dense layout only; leave out --layout {asked.layout}")
    return Storage("dense", fused=False)


def unfit(spec: DecoderSpec) -> str | None:
    return None  # `export.static` checks it against the sizes that were chosen


def finish(directory: Path, spec: DecoderSpec) -> None:
    """Nothing is added."""
