"""`tailcut export`: a model directory becomes an ONNX package."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.progress import Reporter, console

if TYPE_CHECKING:
    from tailcut.manifest import Manifest


class Layout(StrEnum):
    bitmask = "bitmask"
    dense = "dense"


class Variant(StrEnum):
    onnx = "onnx"
    deepsparse = "deepsparse"


def command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory with safetensors weights.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The package directory to write.")],
    layout: Annotated[
        Layout,
        typer.Option(help="bitmask stores no zeros (any ONNX Runtime reads it); dense is for other readers of ONNX."),
    ] = Layout.bitmask,
    variant: Annotated[
        Variant,
        typer.Option(help="onnx: one graph, dynamic sizes. deepsparse: decode.onnx and prefill.onnx of fixed sizes."),
    ] = Variant.onnx,
    context: Annotated[int, typer.Option(help="deepsparse only: tokens the cache holds, the new one included.")] = 256,
    prompt: Annotated[int, typer.Option(help="deepsparse only: tokens of one prefill run.")] = 128,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Skip the comparison with torch (for models torch cannot hold here).")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the package if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the package's manifest as JSON on stdout.")] = False,
) -> None:
    """Write MODEL as an ONNX decoder with KV cache, checked against torch before it is put in place.

    The check compares prefill, cached decode, a batch and left padding; its numbers are in the package's manifest.
    Next: `tailcut generate` or `tailcut bench`.
    """
    with console(quiet=json) as report:
        if variant is Variant.deepsparse:
            manifest = _static(model, out, context, prompt, not no_check, overwrite, report)
        else:
            from tailcut.export.run import export

            manifest = export(model, out, layout=layout.value, check=not no_check, overwrite=overwrite, report=report)
    if json:
        print(codec.to_json(manifest), end="")
    else:
        _show(manifest, out)


def _static(
    model: Path, out: Path, context: int, prompt: int, check: bool, overwrite: bool, report: Reporter
) -> "Manifest":
    from tailcut.export.static import export_deepsparse

    return export_deepsparse(
        model, out, context=context, prompt=prompt, check=check, overwrite=overwrite, report=report
    )


def _show(manifest: "Manifest", out: Path) -> None:
    size = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"{out}: {size / 1e6:.1f} MB, {manifest.sparsity:.1%} zeros in {len(manifest.layers)} matrices")
    if "parity_max_abs_error" in manifest.details:
        facts = manifest.details
        print(
            f"torch: largest logit difference {facts['parity_max_abs_error']:.2g} (limit {facts['parity_tolerance']:.2g}), "
            f"same top token at {facts['parity_top1_agreement']:.0%} of {facts['parity_positions']} positions"
        )
    for note in manifest.notes:
        print(f"note: {note}")
