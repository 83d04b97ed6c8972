"""`tailcut unpack`: a packed directory as any `from_pretrained` loads it."""

from pathlib import Path
from typing import Annotated

import typer

from tailcut.progress import console


def command(
    model: Annotated[Path, typer.Argument(help="A directory made by `tailcut pack` or `tailcut compress --pack`.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The plain directory; must not exist.")],
) -> None:
    """Write the zeros out again: the exact inverse of packing."""
    from tailcut.compress.packing import unpack

    with console() as report:
        unpack(model, out, report=report)
    print(f"{out}: unpacked")
