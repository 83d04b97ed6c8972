"""Open a package in ONNX Runtime, quickly and without doubling its memory.

A bitmask package runs in any ONNX Runtime through its function bodies, but folding those costs seconds a matrix.
`load_session` expands each matrix in numpy (one pass over the mask), rewrites the node to a plain MatMul and hands
ONNX Runtime the expanded matrices as initializers; what is dense already it maps from the file itself.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

from tailcut.bitmask import Packed, unpack, validate
from tailcut.errors import InputError
from tailcut.kernels.arena import Arena
from tailcut.kernels.package import MODEL_NAME, Package, open_package

DOMAIN: Final = "tailcut"
SPARSE_MATMUL: Final = "SparseMatMul"
Array = npt.NDArray[Any]


def load_session(
    package: Path,
    *,
    threads: int | None = None,
    plain: bool = False,
    spinning: bool = True,
    optimise: bool = True,
    hashes: bool = False,
) -> onnxruntime.InferenceSession:
    """A CPU session of a verified package.

    threads: for each operator; None leaves it to ONNX Runtime. spinning false lets idle threads sleep between
    runs, so that several engines on one machine do not disturb each other. plain loads the file with ONNX Runtime
    alone (function bodies), as a user without tailcut would. hashes also compares every file's sha256.
    """
    opened = open_package(package, hashes=hashes)
    options = session_options(threads=threads, spinning=spinning, optimise=optimise)
    try:
        if plain or not any(_is_sparse(node) for node in opened.model.graph.node):
            return _session(str(package / MODEL_NAME), options)  # ONNX Runtime maps the file itself
        return _expanded_session(opened, options)
    except _ORT_ERRORS as error:
        raise InputError(f"{package}: ONNX Runtime cannot open the graph ({str(error).splitlines()[0]})") from error


def session_options(*, threads: int | None, spinning: bool = True, optimise: bool = True) -> onnxruntime.SessionOptions:
    """One way to run for dense and sparse alike: sequential, all optimisations or none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.inter_op_num_threads = 1
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return options


def _expanded_session(package: Package, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session whose bitmask matrices were expanded by numpy, one at a time."""
    nodes = {node.name: node for node in package.model.graph.node if _is_sparse(node)}
    tensors = {tensor.name: tensor for tensor in package.model.graph.initializer}
    packed = {name: packed_matrix(package, node, tensors) for name, node in nodes.items()}
    arena = Arena([(part.shape[::-1], part.values.dtype) for part in packed.values()])
    for array, part in zip(arena.arrays, packed.values(), strict=True):
        array[...] = unpack(part).T
    model = _with_matmuls(package.model, dict(zip(packed, arena.arrays, strict=True)))
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arena.arrays]
    options.add_external_initializers([f"{name}.weight" for name in packed], values)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(package.directory))
    session = _session(model.SerializeToString(), options)
    session.tailcut_weights = values  # the runtime points into them
    arena.release()
    return session


def _with_matmuls(before: onnx.ModelProto, dense: Mapping[str, Array]) -> onnx.ModelProto:
    """The graph with a plain MatMul for every module of `dense` ([in, out])."""
    model = onnx.ModelProto()
    model.CopyFrom(before)
    used: set[str] = set()
    for node in model.graph.node:
        if _is_sparse(node):
            x, *parts = node.input
            used.update(parts)
            made = helper.make_node("MatMul", [x, f"{node.name}.weight"], list(node.output), name=node.name)
            node.CopyFrom(made)
    kept = [tensor for tensor in before.graph.initializer if tensor.name not in used]
    del model.graph.initializer[:], model.functions[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(_placeholder(f"{name}.weight", array) for name, array in dense.items())
    return model


def _is_sparse(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type == SPARSE_MATMUL)


def packed_matrices(package: Package) -> Iterator[tuple[str, Packed]]:
    """Every bitmask matrix of a package with its module name, validated."""
    tensors = {tensor.name: tensor for tensor in package.model.graph.initializer}
    for node in package.model.graph.node:
        if _is_sparse(node):
            yield node.name, packed_matrix(package, node, tensors)


def packed_matrix(package: Package, node: onnx.NodeProto, tensors: Mapping[str, onnx.TensorProto]) -> Packed:
    """The validated bitmask matrix of one SparseMatMul node; `tensors` are the graph's initializers by name."""
    parts = list(node.input)[1:]
    if len(parts) != 3 or any(part not in tensors for part in parts):
        raise InputError(f"{package.directory}: {node.name} needs values, mask and shape stored in the package")
    values, mask, shape = (package.array(tensors[part]) for part in parts)
    if shape.shape != (2,) or shape.dtype != np.int64:
        raise InputError(f"{package.directory}: {node.name} has a shape entry of {shape.dtype} {list(shape.shape)}")
    packed = Packed(values, mask, (int(shape[0]), int(shape[1])))
    validate(packed, f"{package.directory}: {node.name}")
    return packed


def _placeholder(name: str, array: Array) -> onnx.TensorProto:
    """An initializer whose values are handed over in memory."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=kind, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", "in-memory"), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _session(model: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


_STATE = onnxruntime.capi.onnxruntime_pybind11_state
_ORT_ERRORS = (_STATE.Fail, _STATE.InvalidGraph, _STATE.InvalidArgument, _STATE.RuntimeException, _STATE.NotImplemented)
