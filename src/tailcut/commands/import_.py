"""`tailcut import`: what others made, as an ordinary Hugging Face directory with a manifest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.errors import InputError
from tailcut.files import require_absent
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.manifest import Manifest


def _list(asked: bool) -> None:
    if not asked:
        return
    from tailcut.compress.adopting import importers

    for name, importer in importers().items():
        print(f"{name}  {importer.SUMMARY}")
    raise typer.Exit


def command(
    source: Annotated[Path, typer.Argument(help="A directory or file that another tool made.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The directory to write; a JSON file for metric caches.")],
    format_name: Annotated[
        str | None, typer.Option("--format", help="Read the source as this format instead of looking what it is.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="The Hugging Face directory that an ONNX file or a metric cache belongs to."),
    ] = None,
    allocation: Annotated[
        Path | None, typer.Option(help="Also write the plan that follows from the zeros, for `tailcut compress`.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest (or the scores) as JSON on stdout.")] = False,
    listed: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="List the formats that are read.")
    ] = False,
) -> None:
    """Bring in SOURCE: an old sparse checkpoint, a pruned directory, a SparseML ONNX file, GGUF, cached metrics.

    The result is an ordinary Hugging Face directory whose manifest says how many zeros each matrix has. Next: `tailcut
    export`. Nothing in SOURCE is run: pickles and code are refused.
    """
    from tailcut.compress.adopting import allocation_of, bring, bring_scores, choose, importers
    from tailcut.compress.importers import ImportOptions

    chosen, options = choose(source, format_name), ImportOptions(config)
    if importers()[chosen].MAKES == "scores":
        if not overwrite:
            require_absent(out)
        with console(quiet=json) as report:
            scores = bring_scores(source, chosen, options, report)
        codec.save(scores, out)
        print(
            codec.to_json(scores) if json else f"{out}: scores of {len(scores.layers)} matrices",
            end="" if json else "\n",
        )
        return
    if allocation is not None and allocation.exists() and not overwrite:
        raise InputError(f"{allocation}: already exists; choose another file or pass --overwrite")
    with console(quiet=json) as report:
        manifest = bring(source, out, chosen, options, overwrite=overwrite, report=report)
    if allocation is not None:
        codec.save(allocation_of(manifest), allocation)
    print(codec.to_json(manifest) if json else _said(manifest, chosen, out), end="" if json else "\n")


def _said(manifest: "Manifest", chosen: str, out: Path) -> str:
    patterns: dict[str, int] = {}
    for layer in manifest.layers.values():
        kind = {"nm": str(layer.plan.pattern), "unstructured": "unstructured"}.get(layer.plan.pattern.kind, "dense")
        patterns[kind] = patterns.get(kind, 0) + 1
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(patterns.items()))
    lines = [
        f"{out}: {chosen}, {len(manifest.layers)} matrices ({counted})",
        f"block linears: {manifest.sparsity:.4f} zeros of {manifest.prunable_parameters:,} weights",
        *(f"note: {note}" for note in manifest.notes),
        f"next: tailcut export {out} -o PACKAGE",
    ]
    return "\n".join(lines)
