"""`tailcut structured`: cut whole heads, MLP channels or blocks, so that the model is smaller and still dense."""

import inspect
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tailcut import codec
from tailcut.allocation import Allocation
from tailcut.commands._options import CalibrationText, expanded
from tailcut.manifest import Manifest
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.compress.resident import Forward
    from tailcut.compress.structured_run import Units


def _list(wanted: bool) -> None:
    if not wanted:
        return
    from tailcut import plugins
    from tailcut.compress.structured import PACKAGE, Settings, load

    for name in plugins.names(PACKAGE):
        importance = load(name, Settings())
        text = " ".join((inspect.getdoc(importance.score) or "").split())
        print(f"{name}  (reads: {importance.NEEDS}; settings: {', '.join(importance.SETTINGS) or 'none'})")
        print(fill(text, 110, initial_indent="    ", subsequent_indent="    ") + "\n")
    raise typer.Exit


@expanded
def command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory with safetensors weights.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The smaller directory; must not exist.")],
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of the weights in the blocks' matrices that goes, in (0, 1).")
    ] = None,
    allocation: Annotated[
        Path | None,
        typer.Option(help="What `tailcut allocate` wrote, in place of --ratio: blocks lose what it says, and differ."),
    ] = None,
    importance: Annotated[str, typer.Option(help="What decides which units go; --list explains each.")] = "taylor",
    units: Annotated[
        str, typer.Option(help="heads (key/value heads with their queries), mlp (channels), both, or blocks alone.")
    ] = "heads,mlp",
    multiple: Annotated[int, typer.Option(help="MLP widths are left a multiple of this.")] = 64,
    protect_first: Annotated[
        int, typer.Option(help="Blocks at the beginning that keep everything (LLM-Pruner: 4). Blocks then differ.")
    ] = 0,
    protect_last: Annotated[int, typer.Option(help="The same at the end (LLM-Pruner: 2).")] = 0,
    aggregate: Annotated[
        str, typer.Option(help="A unit's scores in its matrices become one by: sum, mean, max, prod or first.")
    ] = "sum",
    blend: Annotated[
        float | None, typer.Option(help="hywia: weight of the fine score, 0 to 1, in place of attention.")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit/--no-refit", help="Refit output projections by least squares on calibration text.")
    ] = True,
    *,
    text: CalibrationText,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = "auto",
    forward: Annotated[
        str, typer.Option(help="Passes over calibration text: float32, or bfloat16 (faster on a GPU).")
    ] = "float32",
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON on stdout.")] = False,
    list_all: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="Explain every importance and leave.")
    ] = False,
) -> None:
    """Cut whole units of MODEL and write a smaller dense model: every engine is faster with it, none needs sparse kernels.

    With --ratio all blocks get the same shape, and any `from_pretrained` loads the result. With --allocation, --protect-first
    or --protect-last blocks differ: tailcut loads and exports such a model, other tools take its ONNX package.
    Scores and finished blocks are kept in OUTPUT.work: after an interruption run the same command again.
    Next: `tailcut recover`, `tailcut export`, or zeros on top with `tailcut measure`.
    """
    from tailcut.compress.structured import Settings
    from tailcut.compress.structured_run import Structuring, cut_structured

    aggregating: Any = aggregate
    asked = Structuring(
        ratio=ratio,
        allocation=None if allocation is None else codec.load(Allocation, allocation),
        importance=importance,
        scoring=Settings(aggregating, blend),
        units=cast("tuple[Units, ...]", tuple(word.strip() for word in units.split(",") if word.strip())),
        multiple=multiple,
        protect_first=protect_first,
        protect_last=protect_last,
        refit=refit,
        calibration=text.wanted,
        device=device,
        forward=cast("Forward", forward),
    )
    with console(quiet=json) as report:
        manifest = cut_structured(model, out, asked, report=report)
    print(codec.to_json(manifest) if json else _summary(manifest, out), end="")


def _summary(manifest: Manifest, out: Path) -> str:
    said = manifest.details
    before, after = int(said["parameters_before"] or 0), manifest.total_parameters
    gone = f"{said['ratio_removed']:.4f} of the weights in the blocks' matrices are gone (asked: {said['ratio_asked']:.4f})"
    lines = [f"{out}: {gone}, {1 - after / before:.4f} of the model: {before:,} to {after:,} parameters"]
    shown = {
        "kv_heads_kept": "key/value heads kept",
        "mlp_channels_kept": "MLP channels kept",
        "removed_blocks": "blocks removed",
        "heads_not_cut": "no heads were cut",
        "mlp_not_cut": "no MLP channels were cut",
    }
    lines += [f"{words}: {said[name]}" for name, words in shown.items() if name in said]
    if said["equal_blocks"]:
        lines.append("all blocks have one shape: any from_pretrained loads this directory")
    lines += [f"note: {note}" for note in manifest.notes]
    return "\n".join(lines) + "\n"
