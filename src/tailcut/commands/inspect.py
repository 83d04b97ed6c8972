"""`tailcut inspect`: what was really cut."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.manifest import Manifest, try_manifest, verify
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.compress.inspection import Inspection


def command(
    directory: Annotated[Path, typer.Argument(help="A Hugging Face directory, plain or packed, or an ONNX package.")],
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON on stdout.")] = False,
) -> None:
    """Count the zeros of every matrix in the decoder blocks of DIRECTORY, as they lie on disk.

    Also: bytes as stored dense and as bitmask-packed, the N:M pattern a matrix obeys, the sparsity of the whole
    model, and what the manifest says about how the directory was made. Of an ONNX package, the manifest is shown
    and every file is checked against its size and sha256.
    """
    if (directory / "manifest.json").is_file() and any(directory.glob("*.onnx")):
        _package(directory, json)
        return
    from tailcut.compress.inspection import inspect_directory

    with console(quiet=json) as report:
        found = inspect_directory(directory, report)
    if json:
        print(codec.to_json(found), end="")
        return
    manifest = try_manifest(directory)
    _show(found)
    _quantised(directory, manifest)
    print(_origin(manifest) if manifest else "no manifest: this directory was not made by tailcut")


def _package(directory: Path, json: bool) -> None:
    manifest = verify(directory)
    if json:
        print(codec.to_json(manifest), end="")
        return
    from rich.console import Console
    from rich.table import Table

    rounded = any(layer.error for layer in manifest.layers.values())
    given = any(layer.plan.bits for layer in manifest.layers.values())
    extra = [*(["bits"] if given else []), *(["rounding error"] if rounded else [])]
    table = Table("matrix", "shape", "plan", "sparsity", *extra)
    for name, layer in manifest.layers.items():
        cells = (f"{layer.shape[0]} x {layer.shape[1]}", str(layer.plan.pattern), f"{layer.sparsity:.4f}")
        bits = [str(layer.plan.bits or "")] if given else []
        table.add_row(name, *cells, *bits, *([f"{layer.error:.2%}"] if rounded else []))
    Console().print(table)
    size = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"block linears: {manifest.sparsity:.4f} zeros of {manifest.prunable_parameters:,} weights")
    print(f"whole model:   {manifest.whole_model_sparsity:.4f} zeros of {manifest.total_parameters:,} weights")
    print(f"on disk        {size / 1e6:.1f} MB, every file has the size and sha256 that the manifest states")
    print(_origin(manifest))


def _show(found: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("matrix", "shape", "sparsity", "N:M", "dense MB", "bitmask MB")
    for name, layer in found.layers.items():
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        sizes = (f"{layer.dense_bytes / 1e6:.2f}", f"{layer.bitmask_bytes / 1e6:.2f}")
        table.add_row(name, shape, f"{layer.sparsity:.4f}", layer.group or "", *sizes)
    Console().print(table)
    dense = sum(layer.dense_bytes for layer in found.layers.values())
    packed = sum(min(layer.bitmask_bytes, layer.dense_bytes) for layer in found.layers.values())
    print(f"block linears: {found.sparsity:.4f} zeros of {found.prunable_parameters:,} weights")
    print(f"whole model:   {found.whole_model_sparsity:.4f} zeros of {found.total_parameters:,} weights")
    print(f"block linears stored dense {dense / 1e6:.1f} MB, bitmask-packed {packed / 1e6:.1f} MB")
    print(f"on disk now    {found.bytes_on_disk / 1e6:.1f} MB of safetensors")


def _quantised(directory: Path, manifest: Manifest | None) -> None:
    """Bits and errors of the matrices that have integers, each read and checked."""
    from rich.console import Console
    from rich.table import Table

    from tailcut.sidecar import open_sidecars

    sidecars = open_sidecars(directory, manifest)
    table = Table("quantised matrix", "bits", "rounding error", "squared output error")
    for name in sidecars:
        layer = sidecars.layers[name]
        sidecars.read(name)
        output = "" if layer.output_error is None else f"{layer.output_error:.3%}"
        table.add_row(name, str(layer.plan.bits), f"{layer.error:.2%}", output)
    if sidecars:
        Console().print(table)


def _origin(manifest: Manifest) -> str:
    lines = [f"made by {manifest.made_by} from {manifest.source.get('name', '?')}"]
    facts = {**manifest.provenance, **manifest.details}
    lines += [f"  {key}: {value}" for key, value in facts.items()]
    lines += [f"note: {note}" for note in manifest.notes]
    return "\n".join(lines)
