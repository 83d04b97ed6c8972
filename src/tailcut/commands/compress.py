"""`tailcut compress`: cut and round a model as an allocation says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tailcut import codec
from tailcut.allocation import Allocation
from tailcut.commands._options import CalibrationText, expanded
from tailcut.manifest import Manifest
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.compress.resident import Forward


@expanded
def command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory with safetensors weights.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The pruned directory; must not exist.")],
    allocation: Annotated[Path, typer.Option(help="What `tailcut allocate` wrote.")] = Path("allocation.json"),
    pruner: Annotated[
        str,
        typer.Option(
            help="magnitude (no calibration); wanda, wanda-variant, ria, dsnot (masks); sparsegpt (slower, corrects what is "
            "kept); alps (slowest, searches the mask and refits what is kept)."
        ),
    ] = "wanda",
    quantiser: Annotated[
        str,
        typer.Option(
            help="For matrices whose plan has bits: rtn (no calibration), gptq, or joint (with sparsegpt, in one sweep)."
        ),
    ] = "gptq",
    clip: Annotated[
        bool, typer.Option("--clip/--no-clip", help="Search scales below 8 bits by squared error, or take the largest.")
    ] = True,
    *,
    text: CalibrationText,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = "auto",
    forward: Annotated[
        str, typer.Option(help="Passes over calibration text: float32, or bfloat16 (several times faster on a GPU).")
    ] = "float32",
    pack: Annotated[
        bool, typer.Option("--pack", help="Store cut matrices without their zeros; only tailcut reads that back.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON on stdout.")] = False,
) -> None:
    """Prune and quantise MODEL block by block and write a directory that any `from_pretrained` loads.

    Quantised matrices are stored as the weights they stand for, with their integers beside them: `tailcut export`
    takes those and rounds nothing anew.
    Only one decoder block is in memory at a time. Finished blocks are kept in OUTPUT.work: after an interruption
    run the same command again, the result is the same byte for byte. Next: `tailcut export`.
    """
    from tailcut.compress.run import compress

    plan = codec.load(Allocation, allocation)
    with console(quiet=json) as report:
        manifest = compress(
            model,
            plan,
            out,
            pruner=pruner,
            quantiser=quantiser,
            clip=clip,
            calibration=text.wanted,
            device=device,
            forward=cast("Forward", forward),
            pack=pack,
            report=report,
        )
    print(codec.to_json(manifest) if json else _summary(manifest, out, pack), end="")


def _summary(manifest: Manifest, out: Path, packed: bool) -> str:
    lines = [
        f"{out}: {manifest.sparsity:.4f} of the block linears are zero, {manifest.whole_model_sparsity:.4f} of the model"
    ]
    if "quantiser" in manifest.details:
        count = sum(layer.plan.bits is not None for layer in manifest.layers.values())
        how, bits = manifest.details["quantiser"], manifest.details["mean_bits"]
        lines.append(f"{how}: {count} of {len(manifest.layers)} matrices have integers of {bits:.2f} bits a weight")
    if packed:
        lines.append("packed: only tailcut reads this directory; `tailcut unpack` makes one for from_pretrained")
    lines += [f"note: {note}" for note in manifest.notes]
    return "\n".join(lines) + "\n"
