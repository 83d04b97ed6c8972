"""`tailcut convert`: a package in another layout, without loss."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tailcut import codec
from tailcut.progress import console


class Layout(StrEnum):
    bitmask = "bitmask"
    dense = "dense"
    coo = "coo"


def command(
    package: Annotated[Path, typer.Argument(help="A package made by `tailcut export`.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The package directory to write.")],
    layout: Annotated[
        Layout,
        typer.Option(
            help="bitmask (no zeros stored), dense (zeros written out) or coo (ONNX's sparse_initializer where it is smaller)."
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the new package's manifest as JSON on stdout.")] = False,
) -> None:
    """Write PACKAGE in another layout. Every weight keeps its bits: converting back gives the same bytes.

    coo is for readers that want the letter of the standard. It is smaller than dense above 2/3 zeros (float32), has no
    fused.onnx, and several tools reject or drop sparse initializers; see docs/importing.md.
    """
    from tailcut.export.convert import convert

    with console(quiet=json) as report:
        manifest = convert(package, out, layout.value, overwrite=overwrite, report=report)
    if json:
        print(codec.to_json(manifest), end="")
    else:
        size = sum(entry.size_bytes for entry in manifest.files.values())
        print(f"{out}: {size / 1e6:.1f} MB, {layout.value}")
