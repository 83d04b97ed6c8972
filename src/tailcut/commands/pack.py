"""`tailcut pack`: a cut directory without its zeros, or a quantised one as others store it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tailcut.errors import InputError
from tailcut.progress import console


class Form(StrEnum):
    bitmask = "bitmask"
    compressed_tensors = "compressed-tensors"


class Activations(StrEnum):
    float = "float"
    int8 = "int8"


def command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory that `tailcut compress` wrote.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The packed directory; must not exist.")],
    form: Annotated[
        Form,
        typer.Option(
            "--format",
            help="bitmask: no zeros stored, tailcut alone reads it. compressed-tensors: a quantised directory's integers "
            "with their zeros, which transformers and vLLM read.",
        ),
    ] = Form.bitmask,
    activations: Annotated[
        Activations,
        typer.Option(help="compressed-tensors, 8-bit weights: int8 asks the reader to round activations too (W8A8)."),
    ] = Activations.float,
) -> None:
    """Store every matrix that shrinks by it as its non-zero values and one bit a weight.

    tailcut reads a packed directory everywhere; transformers does not (it refuses it). `tailcut unpack` gives the
    plain directory back, bit for bit. With --format compressed-tensors the integers of `tailcut compress` are written as
    they are, under the names that transformers and vLLM look for; the package compressed-tensors must be installed there.
    """
    if form is Form.bitmask and activations is not Activations.float:
        raise InputError("--activations belongs to --format compressed-tensors; leave it out")
    with console() as report:
        if form is Form.bitmask:
            from tailcut.compress.packing import pack

            pack(model, out, report=report)
            print(f"{out}: packed")
            return
        from tailcut.compress.quantised_dense import write_compressed_tensors

        config = write_compressed_tensors(model, out, activations=activations.value, report=report)
    kinds = [f"{scheme['weights']['num_bits']} bits" for scheme in config["config_groups"].values()]
    print(f"{out}: {config['format']}, {' and '.join(kinds)}")
