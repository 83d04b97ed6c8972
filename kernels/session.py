"""Open a package in ONNX Runtime, quickly and without doubling its memory.

A bitmask package runs in any ONNX Runtime through its function bodies, but folding those costs seconds a matrix.
`load_session` expands each matrix in numpy (one pass over the mask), rewrites the node to a plain MatMul and hands
ONNX Runtime the expanded matrices and the mapped file as initializers.
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
        if plain:
            return _session(str(package / MODEL_NAME), options)
        model, tensors = expanded(opened)
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in tensors.values()]
        options.add_external_initializers(list(tensors), values)
        return _session(model.SerializeToString(), options)
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


def expanded(package: Package) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The graph with plain MatMuls, and the values of every initializer that lies outside it."""
    model = onnx.ModelProto()
    model.CopyFrom(package.model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    dense: dict[str, Array] = {}
    used: set[str] = set()
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == SPARSE_MATMUL:
            x, *parts = node.input
            matrix = unpack(packed_matrix(package, node, tensors))
            name = f"{node.name}.weight"
            dense[name] = np.ascontiguousarray(matrix.T)
            used.update(parts)
            node.CopyFrom(helper.make_node("MatMul", [x, name], list(node.output), name=node.name))
    kept = [tensor for tensor in tensors.values() if tensor.name not in used]
    del model.graph.initializer[:], model.functions[:]
    model.graph.initializer.extend([*kept, *(_placeholder(name, array) for name, array in dense.items())])
    outside = {tensor.name: package.array(tensor) for tensor in kept if tensor.external_data}
    return model, outside | dense


def packed_matrices(package: Package) -> Iterator[tuple[str, Packed]]:
    """Every bitmask matrix of a package with its module name, validated."""
    tensors = {tensor.name: tensor for tensor in package.model.graph.initializer}
    for node in package.model.graph.node:
        if node.domain == DOMAIN and node.op_type == SPARSE_MATMUL:
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
