"""`tailcut pack`: the cut matrices of a directory without their zeros."""

from pathlib import Path
from typing import Annotated

import typer

from tailcut.progress import console


def command(
    model: Annotated[Path, typer.Argument(help="A pruned Hugging Face directory.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The packed directory; must not exist.")],
) -> None:
    """Store every matrix that shrinks by it as its non-zero values and one bit a weight.

    tailcut reads a packed directory everywhere; transformers does not (it refuses it). `tailcut unpack` gives the
    plain directory back, bit for bit.
    """
    from tailcut.compress.packing import pack

    with console() as report:
        pack(model, out, report=report)
    print(f"{out}: packed")
