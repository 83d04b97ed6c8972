"""`tailcut export`: a model directory becomes an ONNX package."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.errors import InputError
from tailcut.progress import Reporter, console

if TYPE_CHECKING:
    from tailcut.manifest import Manifest


class Layout(StrEnum):
    bitmask = "bitmask"
    dense = "dense"


class Weights(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


class Head(StrEnum):
    float32 = "float32"
    int8 = "int8"
    int4 = "int4"


class Cache(StrEnum):
    float32 = "float32"
    float16 = "float16"


class Variant(StrEnum):
    onnx = "onnx"
    deepsparse = "deepsparse"


class Target(StrEnum):
    tailcut = "tailcut"
    onnxruntime = "onnxruntime"
    optimum = "optimum"
    genai = "genai"
    openvino = "openvino"
    deepsparse = "deepsparse"
    web = "web"


def command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory with safetensors weights.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The package directory to write.")],
    target: Annotated[
        Target | None,
        typer.Option(
            help="Who opens the package; it chooses layout and variant and adds the files of its own. [default: tailcut]"
        ),
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="bitmask stores no zeros (any ONNX Runtime reads it); dense is for other readers of ONNX. "
            "[default: what the target reads best]"
        ),
    ] = None,
    weights: Annotated[
        Weights,
        typer.Option(
            help="How the matrices are rounded: int8 with a scale a row, int4 with a scale a 128 columns. Those that "
            "`tailcut compress` has quantised keep their integers."
        ),
    ] = Weights.float32,
    head: Annotated[
        Head | None,
        typer.Option(help="Output head and token embedding. [default: as the weights, int8 beside int4]"),
    ] = None,
    activation_bits: Annotated[
        int,
        typer.Option(help="How the kernels round activations of int8 and int4 matrices: 8, or 16 (slower, exacter)."),
    ] = 8,
    kv_cache: Annotated[
        Cache | None,
        typer.Option(
            help="Keys and values that fused.onnx keeps. [default: float32 for float32 weights, else float16]"
        ),
    ] = None,
    variant: Annotated[
        Variant | None,
        typer.Option(
            help="onnx: one graph, dynamic sizes. deepsparse: decode.onnx and prefill.onnx of fixed sizes. "
            "[default: the target's]"
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="deepsparse only: tokens the cache holds, the new one included.")] = 256,
    prompt: Annotated[int, typer.Option(help="deepsparse only: tokens of one prefill run.")] = 128,
    engine_cache: Annotated[
        bool, typer.Option("--engine-cache", help="deepsparse only: also cached.onnx, whose cache the engine keeps.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Skip the comparison with torch (for models torch cannot hold here).")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the package if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the package's manifest as JSON on stdout.")] = False,
) -> None:
    """Write MODEL as an ONNX decoder with KV cache, checked against torch before it is put in place.

    The check compares prefill, cached decode, a batch and left padding; its numbers are in the package's manifest.
    Where the family allows it there is fused.onnx beside model.onnx: the same weights, ONNX Runtime's fused operators
    and a cache kept in place. Rounded weights (--weights) are checked against torch with the same rounding.
    --target says who opens the package, where that is not tailcut; docs/targets.md has the table.
    Next: `tailcut generate` or `tailcut bench`.
    """
    with console(quiet=json) as report:
        from tailcut.export import targets

        name = targets.named(target and target.value, variant and variant.value)
        asked = targets.Asked(
            layout and layout.value, weights.value, head and head.value, activation_bits, kv_cache and kv_cache.value
        )
        storage = targets.load(name).settle(asked)
        if targets.load(name).VARIANT == "deepsparse":
            manifest = _static(model, out, context, prompt, engine_cache, not no_check, overwrite, report)
        elif engine_cache:
            raise InputError(f"--engine-cache belongs to --target deepsparse, not {name}; leave it out")
        else:
            from tailcut.export.run import export_as

            manifest = export_as(name, storage, model, out, check=not no_check, overwrite=overwrite, report=report)
    if json:
        print(codec.to_json(manifest), end="")
    else:
        _show(manifest, out)


def _static(
    model: Path,
    out: Path,
    context: int,
    prompt: int,
    engine_cache: bool,
    check: bool,
    overwrite: bool,
    report: Reporter,
) -> "Manifest":
    from tailcut.export.static import export_deepsparse

    return export_deepsparse(
        model,
        out,
        context=context,
        prompt=prompt,
        engine_cache=engine_cache,
        check=check,
        overwrite=overwrite,
        report=report,
    )


def _show(manifest: "Manifest", out: Path) -> None:
    size = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"{out}: {size / 1e6:.1f} MB, {manifest.sparsity:.1%} zeros in {len(manifest.layers)} matrices")
    facts = manifest.details
    if "linear_bits_per_weight" in facts:
        print(
            f"{facts['precision']}: {facts['linear_bits_per_weight']:.2f} bits a weight in the blocks; the "
            f"{facts['head_precision']} head is {facts['head_share']:.0%} of what a token reads; "
            f"{_fused(str(facts['fused_graph']))}"
        )
    if "weight_error_median" in facts:
        print(
            f"rounding moved a matrix by {facts['weight_error_median']:.2%} of its norm (median), at most "
            f"{facts['weight_error_largest']:.2%}; the comparison below is at the rounded weights"
        )
    if "parity_max_abs_error" in facts:
        print(
            f"torch: largest logit difference {facts['parity_max_abs_error']:.2g} (limit {facts['parity_tolerance']:.2g}), "
            f"same top token at {facts['parity_top1_agreement']:.0%} of {facts['parity_positions']} positions"
        )
    for note in manifest.notes:
        print(f"note: {note}")


def _fused(found: str) -> str:
    return f"with {found}" if found.endswith(".onnx") else f"no fused graph: {found}"
