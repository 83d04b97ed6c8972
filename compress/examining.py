"""What any directory or file is: ours, another tool's, sparse, quantised; counted as it lies on disk, nothing converted."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint
from tailcut.compress.adopting import detect
from tailcut.compress.engine_advice import engines_of, next_of
from tailcut.compress.importers import alphapruning_cache, compressed_tensors, onnx_sparseml
from tailcut.compress.importers._gguf_header import read_header
from tailcut.compress.importers._onnx_graph import OnnxGraph, OnnxLinear
from tailcut.compress.importers._reading import quantised_by, try_config
from tailcut.compress.inspection import Inspection, MatrixFacts, facts_of, inspect_directory
from tailcut.compress.models import _gguf
from tailcut.compress.packing import is_packed
from tailcut.compress.skeleton import build_skeleton, linears_of
from tailcut.errors import InputError
from tailcut.progress import Reporter, silent

_BLOCK: Final = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|blk)\.(\d+)(?=\.|$)")
Facts = dict[str, MatrixFacts]


def examine(path: Path, report: Reporter = silent) -> Inspection:
    """Everything about `path`; InputError when nothing that tailcut knows is there."""
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    found = _look(path, report)
    return replace(found, engines=engines_of(found), next=next_of(found, path))


def _look(path: Path, report: Reporter) -> Inspection:
    config = try_config(path)
    method = quantised_by(config) if config is not None else None
    if method not in (None, "compressed-tensors"):
        note = f"quantised by {method}, which tailcut does not read; start from the unquantised model"
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        return Inspection({}, 0, size, f"a Hugging Face directory quantised by {method}", "", notes=(note,))
    recognised = None if is_packed(path) else detect(path)
    if recognised is None or recognised[0] == "huggingface":
        return _ours(path, report)
    name, what = recognised
    return replace(_READERS[name](path, report), what=what, format=name)


def _ours(path: Path, report: Reporter) -> Inspection:
    """A plain or packed directory; the sentence of whatever is wrong with anything else."""
    if path.is_file():
        raise InputError(
            f"{path}: not a file that tailcut knows; give a model directory, a package, an .onnx, .gguf or .npy file"
        )
    if not (path / "config.json").is_file() and not any(path.glob("*.safetensors")):
        raise InputError(
            f"{path}: neither a model directory (no config.json, no .safetensors) nor a package; name one, or the file itself"
        )
    found = inspect_directory(path, report)
    if is_packed(path):
        return replace(found, what="a bitmask-packed directory of tailcut's", format="packed")
    kind = "dense" if found.sparsity < _FEW else "pruned"
    return replace(found, what=f"a {kind} Hugging Face directory", format="model")


def _compressed_tensors(path: Path, report: Reporter) -> Inspection:
    config = try_config(path) or {}
    modules = compressed_tensors.Modules(Checkpoint(path), compressed_tensors.read_settings(path, config))
    plain = {key: value for key, value in config.items() if key not in compressed_tensors.KEYS}
    skeleton = build_skeleton(onnx_sparseml.Described(path, plain))
    names = [
        (index, skeleton.block_prefix(index) + inner)
        for index, block in enumerate(skeleton.blocks)
        for inner, _ in linears_of(block)
    ]
    layers: Facts = {}
    for done, (block, module) in enumerate(names, 1):
        weight = modules.read_finite(f"{module}.weight")
        bits, stored, kind = modules.form(module)
        layers[module] = facts_of(weight, block, bits, stored, kind)
        modules.checkpoint.release()
        report("inspect", done, len(names), module)
    total = sum(int(np.prod(modules.shape(name))) for found in modules.names().values() for name in found)
    return Inspection(layers, total, _size(modules.checkpoint.files))


def _onnx(path: Path, report: Reporter) -> Inspection:
    graph = OnnxGraph(onnx_sparseml.graph_file(path))
    found, layers = list(graph.linears()), Facts()
    for done, linear in enumerate(found, 1):
        name, block = _name_of(linear)
        unique = name if name not in layers else f"{name} ({done})"
        matrix = linear.read()
        values = matrix.array if matrix.scale is None else _narrow(matrix.shifted())
        layers[unique] = facts_of(values, block, linear.bits, linear.stored_bytes, linear.kind)
        report("inspect", done, len(found), name)
    files = {graph.path, *(graph.path.parent / name for name in graph.external_files())}
    outside = [name for name, layer in layers.items() if layer.block < 0]
    notes = list(graph.notes())
    if 0 < len(outside) < len(layers):  # the head, an embedding: not among the linears that are cut
        layers = {name: layer for name, layer in layers.items() if layer.block >= 0}
        notes.append(f"left out, in no block: {', '.join(outside[:4])}{', ...' if len(outside) > 4 else ''}")
    return Inspection(layers, graph.parameters(), _size(files), notes=tuple(notes))


def _narrow(values: npt.NDArray[np.int32]) -> Array:
    """q - zero point in a byte where it fits (nine bits are the most): bytes are counted by the width."""
    fits = values.size == 0 or (int(values.min()) >= -128 and int(values.max()) <= 127)
    return values.astype(np.int8 if fits else np.int16)


def _name_of(linear: OnnxLinear) -> tuple[str, int]:
    """The label that says which block it is in, and that block; else the first label, -1."""
    for label in linear.labels:
        found = _BLOCK.search(label)
        if found is not None:
            return label, int(found[1])
    return linear.labels[0], -1


def _gguf_file(path: Path, report: Reporter) -> Inspection:
    header = read_header(path)
    model, layers, notes = _gguf.open_gguf(path), Facts(), ()
    names = [name for name, tensor in header.tensors.items() if name.startswith("blk.") and len(tensor.shape) == 2]
    for done, name in enumerate(names, 1):
        tensor = header.tensors[name]
        weight = _dequantised(model, name, path)
        block = _BLOCK.search(name)
        bits = round(8 * tensor.size_bytes / max(1, weight.size))
        facts = facts_of(weight, int(block[1]) if block else -1, bits, tensor.size_bytes, tensor.kind)
        layers[name.removesuffix(".weight")] = facts
        report("inspect", done, len(names), name)
    total = sum(int(np.prod(tensor.shape)) for tensor in header.tensors.values())
    return Inspection(layers, total, path.stat().st_size, notes=notes)


def _dequantised(model: _gguf.GgufModel, name: str, path: Path) -> _gguf.Float32:
    try:
        return _gguf.dequantise(model, name)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: tensor {name} cannot be dequantised ({error})") from error


def _cache(path: Path, report: Reporter) -> Inspection:
    values = alphapruning_cache.read_values(path)
    counted = f"{len(values)} values from {values.min():.4g} to {values.max():.4g}, mean {values.mean():.4g}"
    try:
        named = f"metric {alphapruning_cache.metric_of(path)}"
    except InputError as error:
        named = str(error)
    report("inspect", 1, 1, path.name)
    return Inspection({}, 0, path.stat().st_size, notes=(counted, named))


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


_FEW: Final = 0.05
_READERS: Final[Mapping[str, Callable[[Path, Reporter], Inspection]]] = {
    "compressed-tensors": _compressed_tensors,
    "onnx-sparseml": _onnx,
    "gguf": _gguf_file,
    "alphapruning-cache": _cache,
}
