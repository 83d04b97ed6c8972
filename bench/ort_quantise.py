"""A dense package rewritten for ONNX Runtime's own quantised kernels: what an informed user deploys today.

Every MatMul with a stored float32 matrix, the output matrix included, becomes

    int8   com.microsoft DynamicQuantizeMatMul: 7-bit weights, one scale a column, activations quantised at run time
    int4   com.microsoft MatMulNBits: blocks of 32, float32 scales, accuracy_level 4 (int8 products)

(MatMulNBits with 8 bits was tried as int8: slower than the first at one token on AVX2.) The embedding table stays
float32: a step reads one row of it. The graph is the package's fused one (grouped attention with a cache written in
place) where there is one, so that the peer is measured at its best.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import helper

from tailcut.bench.quantise import BLOCK, REDUCED, Floats, int8_columns, nbit_blocks
from tailcut.bench.stored import Array, StoredGraph, TensorFile, is_linear, open_graph, rewritten, weight_of
from tailcut.errors import InputError
from tailcut.kernels.package import DATA_NAME, FUSED_NAME, MODEL_NAME
from tailcut.manifest import verify

Bits = Literal[8, 4]
GRAPHS: Final = (FUSED_NAME, MODEL_NAME)  # best first
ACCURACY_LEVEL: Final = 4
_DOMAIN: Final = "com.microsoft"
_CHUNK: Final = 4096  # output columns quantised at a time: bounds the memory of a large output matrix


def graph_of(package: Path) -> Path | None:
    """The best graph of a directory, None when it has none."""
    return next((package / name for name in GRAPHS if (package / name).is_file()), None)


def quantise(package: Path, out: Path, bits: Bits) -> dict[str, Any]:
    """Write the quantised graph and its data into `out`; facts about it."""
    verify(package, hashes=False)
    graph = _dense_graph(package)
    count = sum(is_linear(node, graph) for node in graph.model.graph.node)
    with (out / DATA_NAME).open("wb") as stream:
        file = TensorFile(stream)
        nodes = [
            _linear(node, graph, file, bits) if is_linear(node, graph) else node for node in graph.model.graph.node
        ]
        model = rewritten(graph, nodes, file, _DOMAIN)
    (out / graph.path.name).write_bytes(model.SerializeToString(deterministic=True))
    return {"graph": graph.path.name, "matrices": count, "weights": _described(bits)}


def _described(bits: Bits) -> str:
    if bits == 8:
        return f"int8 -{REDUCED}..{REDUCED} a column (reduced range), activations uint8 at run time"
    return f"int4 blocks of {BLOCK}, float32 scales, accuracy_level {ACCURACY_LEVEL}"


def _dense_graph(package: Path) -> StoredGraph:
    path = graph_of(package)
    if path is None:
        raise InputError(f"{package}: holds no {GRAPHS[-1]}; make the package with `tailcut export`")
    graph = open_graph(path)
    if any(node.domain == "tailcut" and "MatMul" in node.op_type for node in graph.model.graph.node):
        raise InputError(f"{package}: has sparse or quantised matrices; make this variant from a dense float32 package")
    return graph


def _linear(node: onnx.NodeProto, graph: StoredGraph, file: TensorFile, bits: Bits) -> onnx.NodeProto:
    name, weight = node.input[1], weight_of(node, graph)
    made = _int8(name, weight, file) if bits == 8 else _int4(name, weight, file)
    made.input.insert(0, node.input[0])
    made.output.extend(node.output)
    made.name, made.domain = node.name, _DOMAIN
    return made


def _int8(name: str, weight: Floats, file: TensorFile) -> onnx.NodeProto:
    parts = _by_columns(weight, lambda part: int8_columns(part, REDUCED))
    codes, scales = np.concatenate(parts[0], axis=1), np.concatenate(parts[1])
    names = [file.store(f"{name}.int8", codes), file.store(f"{name}.scales", scales)]
    return helper.make_node("DynamicQuantizeMatMul", names, [])


def _int4(name: str, weight: Floats, file: TensorFile) -> onnx.NodeProto:
    codes, scales = (np.concatenate(part) for part in _by_columns(weight, lambda part: nbit_blocks(part, 4)))
    names = [file.store(f"{name}.int4", codes), file.store(f"{name}.scales", scales)]
    settings = {"K": weight.shape[0], "N": weight.shape[1], "bits": 4, "block_size": BLOCK}
    return helper.make_node("MatMulNBits", names, [], accuracy_level=ACCURACY_LEVEL, **settings)


def _by_columns(weight: Floats, work: Callable[[Floats], tuple[Array, Array]]) -> tuple[list[Array], list[Array]]:
    starts = range(0, weight.shape[1], _CHUNK)
    done = [work(np.ascontiguousarray(weight[:, start : start + _CHUNK])) for start in starts]
    return [first for first, _ in done], [second for _, second in done]
