"""`tailcut inspect`: what was really cut."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.manifest import Manifest, try_manifest, verify
from tailcut.progress import console, tables

if TYPE_CHECKING:
    from tailcut.compress.inspection import Inspection


def command(
    path: Annotated[
        Path, typer.Argument(help="A model directory, an ONNX package or file, a GGUF file, cached metrics: anything.")
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON on stdout.")] = False,
) -> None:
    """Say what PATH is and count the zeros of every matrix in its decoder blocks, as they lie on disk.

    Ours or another tool's: Hugging Face directories (plain, packed, compressed-tensors), ONNX files (dense zeros, QDQ,
    MatMulInteger, sparse initializers), GGUF, AlphaPruning's caches. Also: bits and bytes as stored, the N:M pattern that
    a matrix obeys, what each engine would do with it, and what to run next. Of an ONNX package of ours, the manifest is
    shown and every file is checked against its size and sha256.
    """
    directory = path.parent if path.suffix == ".onnx" and path.is_file() else path
    if (directory / "manifest.json").is_file() and any(directory.glob("*.onnx")):
        _package(directory, json)
        return
    from tailcut.compress.examining import examine

    with console(quiet=json) as report:
        found = examine(path, report)
    if json:
        print(codec.to_json(found), end="")
        return
    print(f"{path}: {found.what}")
    if found.layers:
        _show(found)
    manifest = try_manifest(path) if path.is_dir() else None
    _quantised(path, manifest)
    if found.format in ("model", "packed"):
        print(_origin(manifest) if manifest else "no manifest: this directory was not made by tailcut")
    _advice(found)


def _advice(found: "Inspection") -> None:
    for note in found.notes:
        print(f"note: {note}")
    for engine, sentence in found.engines.items():
        print(f"{engine + ':':<13} {sentence}")
    for command in found.next:
        print(f"next: {command}")


def _package(directory: Path, json: bool) -> None:
    manifest = verify(directory)
    if json:
        print(codec.to_json(manifest), end="")
        return
    from rich.table import Table

    rounded = any(layer.error for layer in manifest.layers.values())
    given = any(layer.plan.bits for layer in manifest.layers.values())
    extra = [*(["bits"] if given else []), *(["rounding error"] if rounded else [])]
    table = Table("matrix", "shape", "plan", "sparsity", *extra)
    for name, layer in manifest.layers.items():
        cells = (f"{layer.shape[0]} x {layer.shape[1]}", str(layer.plan.pattern), f"{layer.sparsity:.4f}")
        bits = [str(layer.plan.bits or "")] if given else []
        table.add_row(name, *cells, *bits, *([f"{layer.error:.2%}"] if rounded else []))
    tables().print(table)
    size = sum(entry.size_bytes for entry in manifest.files.values())
    print(f"block linears: {manifest.sparsity:.4f} zeros of {manifest.prunable_parameters:,} weights")
    print(f"whole model:   {manifest.whole_model_sparsity:.4f} zeros of {manifest.total_parameters:,} weights")
    print(f"on disk        {size / 1e6:.1f} MB, every file has the size and sha256 that the manifest states")
    print(_origin(manifest))
    print(f"next: tailcut bench DENSE_PACKAGE {directory}; tailcut convert {directory} --layout dense -o OTHER")


def _show(found: "Inspection") -> None:
    from rich.table import Table

    table = Table("matrix", "shape", "sparsity", "N:M", "dense MB", "bitmask MB", "stored", "bits")
    for name, layer in found.layers.items():
        shape = f"{layer.shape[0]} x {layer.shape[1]}"
        sizes = (f"{layer.dense_bytes / 1e6:.2f}", f"{layer.bitmask_bytes / 1e6:.2f}", layer.kind, str(layer.bits))
        table.add_row(name, shape, f"{layer.sparsity:.4f}", layer.group or "", *sizes)
    tables().print(table)
    kinds = Counter(layer.kind for layer in found.layers.values())
    if set(kinds) != {"dense"}:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        print(f"stored as      {counted}: {sum(layer.stored_bytes for layer in found.layers.values()) / 1e6:.1f} MB")
    dense = sum(layer.dense_bytes for layer in found.layers.values())
    packed = sum(min(layer.bitmask_bytes, layer.dense_bytes) for layer in found.layers.values())
    print(f"block linears: {found.sparsity:.4f} zeros of {found.prunable_parameters:,} weights")
    print(f"whole model:   {found.whole_model_sparsity:.4f} zeros of {found.total_parameters:,} weights")
    print(f"block linears stored dense {dense / 1e6:.1f} MB, bitmask-packed {packed / 1e6:.1f} MB")
    print(
        f"on disk now    {found.bytes_on_disk / 1e6:.1f} MB{' of safetensors' if found.format in ('model', 'packed') else ''}"
    )


def _quantised(directory: Path, manifest: Manifest | None) -> None:
    """Bits and errors of the matrices that have integers, each read and checked."""
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
        tables().print(table)


def _origin(manifest: Manifest) -> str:
    lines = [f"made by {manifest.made_by} from {manifest.source.get('name', '?')}"]
    facts = {**manifest.provenance, **manifest.details}
    lines += [f"  {key}: {value}" for key, value in facts.items()]
    lines += [f"note: {note}" for note in manifest.notes]
    return "\n".join(lines)
