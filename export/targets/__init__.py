"""Targets: who opens a package. One file each: what it can read, and the files of its own that it wants.

A target turns what the user asked for into how a package is stored, refuses in a sentence what its readers cannot open, and
finishes the directory before it is checked: the checks against torch run on the finished files.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol, cast

from tailcut import plugins
from tailcut.errors import InputError
from tailcut.export.forms import Layout
from tailcut.export.layouts import Storage, storage
from tailcut.export.quantise import HALVES
from tailcut.export.spec import DecoderSpec

Variant = Literal["onnx", "deepsparse"]
OWN: Final = "tailcut"
_FOLDER: Final = "tailcut.export.targets"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user said on the command line; None where nothing was said."""

    layout: str | None = None
    weights: str = "float32"
    head: str | None = None
    activation_bits: int = 8
    kv_cache: str | None = None


class Target(Protocol):
    """What a file in this folder provides."""

    SUMMARY: str  # one sentence: who opens it
    VARIANT: Variant
    LAYOUTS: tuple[Layout, ...]  # what its readers can open, the best first

    def settle(self, asked: Asked) -> Storage:
        """How the package is stored; InputError where the readers cannot open what was asked for."""
        ...

    def unfit(self, spec: DecoderSpec) -> str | None:
        """None if the readers can run this decoder, else why not."""
        ...

    def finish(self, directory: Path, spec: DecoderSpec) -> None:
        """Add or change the target's own files; graphs, data and side files are there, the manifest is not."""
        ...


def names() -> tuple[str, ...]:
    return plugins.names(_FOLDER)


def load(name: str) -> Target:
    return cast(Target, plugins.load(_FOLDER, name))


def named(target: str | None, variant: str | None) -> str:
    """The target that is meant: --variant deepsparse alone is --target deepsparse; InputError for two that disagree."""
    meant = target or ("deepsparse" if variant == "deepsparse" else OWN)
    own = load(meant).VARIANT
    if variant is not None and variant != own:
        raise InputError(f"--target {meant} is the {own} variant, not --variant {variant}; leave out one of the two")
    return meant


def settled(target: str, asked: Asked, layouts: tuple[Layout, ...], *, fused: bool = False) -> Storage:
    """Storage in the target's best layout, or the one asked for; `fused`: whether its readers use fused.onnx."""
    if asked.weights in HALVES and "bitmask" not in layouts:
        raise InputError(f"--target {target} reads float32 and integer matrices; leave out --weights {asked.weights}")
    layout = asked.layout or ("bitmask" if asked.weights in HALVES else layouts[0])
    chosen = storage(layout, asked.weights, asked.head, asked.activation_bits, asked.kv_cache)
    if layout not in layouts:
        raise InputError(f"--target {target} reads the {' or '.join(layouts)} layout only; leave out --layout {layout}")
    if not fused and asked.kv_cache is not None:
        raise InputError(f"--kv-cache is about fused.onnx, which --target {target} does not have; leave it out")
    return chosen if fused else replace(chosen, fused=False, kv_cache="float32")
