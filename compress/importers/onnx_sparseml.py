"""ONNX files of SparseML, DeepSparse's zoo and their kin: the linears' weights out of the graph, back into a model directory.

Needs the Hugging Face directory that the file came from: its config says which linears there are; its tokenizer goes along.
What the graph does not hold under its own name (a tied head, folded norms) is taken from that directory's weights if it has
them. Integers with symmetric scales, one for a matrix or one an output, stay exact: they lie in sidecars as tailcut's own
do, so that an export stores them as they were. Other integers become floats.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from transformers.pytorch_utils import Conv1D

from tailcut.allocation import Bits
from tailcut.bitmask import Array
from tailcut.checkpoint import Checkpoint, read_config, write_shard
from tailcut.compress.companions import copy_companions
from tailcut.compress.importers import Brought, Details, ImportOptions
from tailcut.compress.importers._onnx_graph import Constant, OnnxGraph, OnnxLinear
from tailcut.compress.importers._onnx_names import assign
from tailcut.compress.importers._reading import QUANTISED_BY
from tailcut.compress.models._writing import write_json, write_shards
from tailcut.compress.skeleton import Skeleton, TensorNames, build_skeleton, linears_of
from tailcut.errors import InputError
from tailcut.files import sha256_file
from tailcut.manifest import MANIFEST_NAME
from tailcut.progress import Reporter
from tailcut.sidecar import Errors, Integral, file_name, tensors_of

SUMMARY: Final = "ONNX files of SparseML and DeepSparse: dense zeros, QDQ and MatMulInteger int8, sparse initializers"
MAKES: Final[Literal["model", "scores"]] = "model"
_EXACT: Final = 127  # the largest |q| of tailcut's own int8
_BLOCKS_A_SHARD: Final = 4


@dataclass(frozen=True, slots=True)
class Described:
    """A config and where it stands, for a skeleton without weights."""

    directory: Path
    config: Mapping[str, Any]


def recognises(source: Path) -> str | None:
    """An .onnx file, or a directory that holds one and no manifest of ours."""
    try:
        path = graph_file(source)
    except InputError:
        return None
    return f"an ONNX file ({path.name})"


def graph_file(source: Path) -> Path:
    """The graph of an .onnx file or of a directory that holds one; InputError where that is not clear."""
    if source.is_file() and source.suffix == ".onnx":
        return source
    found = sorted(source.glob("*.onnx")) if source.is_dir() and not (source / MANIFEST_NAME).exists() else []
    if not found:
        raise InputError(f"{source}: no ONNX file of another tool")
    named = [path for path in found if path.name == "model.onnx"]
    if len(found) > 1 and not named:
        raise InputError(f"{source}: holds {', '.join(path.name for path in found[:4])}; name the file that is meant")
    return (named or found)[0]


def bring_in(source: Path, directory: Path, options: ImportOptions, report: Reporter) -> Brought:
    """Write the model of `options.config` with the weights of the graph."""
    path = graph_file(source)
    config_dir = options.config or path.parent
    if not (config_dir / "config.json").is_file():
        raise InputError(
            f"{path}: give the Hugging Face directory that it came from with --config; {config_dir} has no config.json"
        )
    recovered = _recover(OnnxGraph(path), config_dir, report)
    blocks = len(recovered.skeleton.blocks)
    write_shards(directory, recovered.groups(), -(-blocks // _BLOCKS_A_SHARD) + 1, report)
    copy_companions(config_dir, directory)
    body = {
        k: v for k, v in read_config(config_dir).items() if k not in (*QUANTISED_BY, "sparsity_config", "torch_dtype")
    }
    write_json(directory / "config.json", body | {"dtype": "float32"})
    bits = recovered.write_integers(directory)
    kinds = json.dumps(recovered.kinds(), sort_keys=True)
    details: Details = {"onnx_kinds": kinds, "from_config": len(recovered.borrowed), "exact_integers": len(bits)}
    notes = _notes(recovered, bits)
    return Brought({"model": sha256_file(path), "name": path.stem}, details, notes, bits)


@dataclass(slots=True)
class _Recovered:
    """The matrices and other parameters that were found, read one at a time when they are written."""

    graph: OnnxGraph
    skeleton: Skeleton
    matrices: dict[str, OnnxLinear]  # module -> matrix
    dense: Checkpoint | None  # the weights beside the config
    borrowed: list[str] = field(default_factory=list)  # parameters taken from there
    integers: dict[str, Integral] = field(default_factory=dict)

    def groups(self) -> Iterator[dict[str, Array]]:
        """What lies outside the blocks, then some blocks at a time; float32."""
        head = "" if not _is_tied(self.skeleton) else f"{_head_name(self.skeleton)}.weight"
        names = [name for name, _ in self.skeleton.model.named_parameters() if name != head]
        prefixes = [self.skeleton.block_prefix(index) for index in range(len(self.skeleton.blocks))]
        inside = {prefix: [name for name in names if name.startswith(prefix)] for prefix in prefixes}
        blocks = {name for found in inside.values() for name in found}
        yield {name: self._read(name) for name in names if name not in blocks}
        for first in range(0, len(prefixes), _BLOCKS_A_SHARD):
            wanted = prefixes[first : first + _BLOCKS_A_SHARD]
            yield {name: self._read(name) for prefix in wanted for name in inside[prefix]}

    def write_integers(self, directory: Path) -> dict[str, Bits]:
        """The sidecars of the matrices whose integers are exact: module -> bits."""
        count, bits = len(self.skeleton.blocks), {}
        for index in range(count):
            prefix = self.skeleton.block_prefix(index)
            mine = {module: matrix for module, matrix in self.integers.items() if module.startswith(prefix)}
            tensors: dict[str, Array] = {}
            for module, matrix in mine.items():
                tensors |= tensors_of(module, matrix, Errors(0.0, None))
                bits[module] = matrix.bits
            if tensors:
                write_shard(directory / file_name(index, count), tensors)
        return bits

    def kinds(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for matrix in self.matrices.values():
            found[matrix.kind] = found.get(matrix.kind, 0) + 1
        return found

    def _read(self, name: str) -> Array:
        parameter = self.skeleton.model.get_parameter(name)
        shape = tuple(int(size) for size in parameter.shape)
        array = self._found(name, shape)
        if array is None:
            raise InputError(
                f"{self.graph.path}: no weight for {name} {list(shape)}; give --config a directory that also holds the dense "
                "weights: matrices are recognised by them, and what the graph lost is taken from there"
            )
        # adding 0.0 turns the -0.0 that masks leave behind into 0.0
        return np.ascontiguousarray(np.asarray(array, np.float32) + np.float32(0))

    def _found(self, name: str, shape: tuple[int, ...]) -> Array | None:
        module = name.removesuffix(".weight")
        if module in self.matrices:
            matrix = self.matrices[module].read()
            self._keep_integers(module, matrix)
            array = matrix.dense()
            return array if array.shape == shape else array.T  # GPT-2 stores [in, out]
        plain = self.graph.parameter(name)
        if (
            plain is not None
            and plain.array.shape == shape
            and (plain.scale is not None or plain.array.dtype.kind in "fV")
        ):
            return plain.dense()
        table = self.graph.table((name, module)) if len(shape) == 2 else None
        if table is not None and table.array.shape == shape:
            return table.dense()
        if self.dense is not None:
            tensor = TensorNames(self.dense, self.skeleton).find(name)
            if tensor is not None and self.dense.shape(tensor) == shape:
                self.borrowed.append(name)
                return self.dense.read(tensor)
        return None

    def _keep_integers(self, module: str, matrix: Constant) -> None:
        """Remember W as q * scale where tailcut stores exactly that."""
        if matrix.scale is None or not module.startswith(f"{self.skeleton.blocks_name}."):
            return
        q, scales = matrix.shifted(), np.asarray(matrix.scale, np.float32).reshape(-1)
        if (
            scales.size not in (1, q.shape[0])
            or (scales.size > 1 and matrix.axis != 0)
            or np.abs(q).max(initial=0) > _EXACT
        ):
            return
        self.integers[module] = Integral(
            q.astype(np.int8), np.ascontiguousarray(np.broadcast_to(scales, (q.shape[0],))), 8
        )


def _recover(graph: OnnxGraph, config_dir: Path, report: Reporter) -> _Recovered:
    skeleton = build_skeleton(Described(config_dir, read_config(config_dir)))
    dense = _weights_of(config_dir)
    wanted: dict[str, tuple[int, int]] = {}
    transposed = False
    for index, block in enumerate(skeleton.blocks):
        for inner, linear in linears_of(block):
            rows, columns = (int(size) for size in linear.weight.shape)
            transposed = isinstance(linear, Conv1D)
            wanted[skeleton.block_prefix(index) + inner] = (columns, rows) if transposed else (rows, columns)
    everything = wanted | _head(skeleton)
    found = list(graph.linears())
    report("recognise", 0, 1, f"{len(found)} matrices")

    def source(module: str) -> Array:
        if dense is None:
            raise ValueError("no dense weights")
        weight = dense.read(
            TensorNames(dense, skeleton).require(f"{module}.weight", _stored(wanted[module], transposed))
        )
        return weight.T if transposed else weight

    names = assign(found, everything, source if dense is not None else None, str(graph.path))
    lost = [module for module in wanted if module not in names]
    if lost:
        raise InputError(
            f"{graph.path}: {len(found)} matrices, none of them recognised as {lost[0]} ({len(lost)} of {len(wanted)} linears "
            "missing); give --config the model's directory with its dense weights, by which they are told apart"
        )
    report("recognise", 1, 1, f"{len(names)} of {len(found)} matrices")
    return _Recovered(graph, skeleton, names, dense)


def _head(skeleton: Skeleton) -> dict[str, tuple[int, int]]:
    """The output head, where it is a matrix of its own; only its name can tell it."""
    name = _head_name(skeleton)
    if name is None or _is_tied(skeleton):
        return {}
    rows, columns = skeleton.model.get_parameter(f"{name}.weight").shape
    return {name: (int(rows), int(columns))}


def _head_name(skeleton: Skeleton) -> str | None:
    head = skeleton.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return next((name for name, module in skeleton.model.named_modules() if module is head), None)


def _is_tied(skeleton: Skeleton) -> bool:
    """Whether the head is the token embedding and is not stored."""
    return bool(getattr(skeleton.model.config.get_text_config(decoder=True), "tie_word_embeddings", False))


def _stored(shape: tuple[int, int], transposed: bool) -> tuple[int, int]:
    return (shape[1], shape[0]) if transposed else shape


def _weights_of(directory: Path) -> Checkpoint | None:
    try:
        return Checkpoint(directory)
    except InputError:
        return None


def _notes(recovered: _Recovered, bits: Mapping[str, Bits]) -> tuple[str, ...]:
    blocks = f"{recovered.skeleton.blocks_name}."
    inside = (matrix for module, matrix in recovered.matrices.items() if module.startswith(blocks))
    quantised = sum(matrix.kind not in ("dense", "coo") for matrix in inside)
    if not quantised:
        return ()
    kept = f"{len(bits)} of {quantised} matrices in the blocks keep their integers exactly"
    return (f"weights were int8 in the ONNX file: {kept}; how much quantising lost is not known here",)
