"""Open a package in ONNX Runtime, quickly and without doubling its memory.

With tailcut's kernels ONNX Runtime opens the file itself and hands every matrix to them as it is stored. Without them:
A bitmask package runs in any ONNX Runtime through its function bodies, but folding those costs seconds a matrix.
`load_session` expands each matrix in numpy (one pass over the mask), rewrites the node to a plain MatMul and hands
ONNX Runtime the expanded matrices as initializers; what is dense already it maps from the file itself.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper

from tailcut.bitmask import Packed
from tailcut.errors import InputError
from tailcut.kernels import library
from tailcut.kernels.arena import Arena
from tailcut.kernels.package import FUSED_NAME, MODEL_NAME, Package, open_package
from tailcut.kernels.stored import is_stored, stored_matrices

_EXPANDED: Final = ".expanded"  # added to a matrix's name: no stored tensor is called so
Kernels = Literal["auto", "require", "off"]
Array = npt.NDArray[Any]


def load_session(
    package: Path,
    *,
    threads: int | None = None,
    plain: bool = False,
    spinning: bool = True,
    optimise: bool = True,
    hashes: bool = False,
    kernels: Kernels = "auto",
    graph: str = MODEL_NAME,
    cpus: Sequence[int] = (),
) -> onnxruntime.InferenceSession:
    """A CPU session of a verified package.

    kernels: "auto" runs tailcut's own kernels where they were compiled, "require" refuses to go on without them, "off"
    leaves everything to ONNX Runtime. graph: the file of the package to open.
    cpus: one for each thread, which then stay there; the first is the calling thread's, which pins itself.

    threads: for each operator; None leaves it to ONNX Runtime. spinning false lets idle threads sleep between
    runs, so that several engines on one machine do not disturb each other. plain loads the file with ONNX Runtime
    alone (function bodies), as a user without tailcut would. hashes also compares every file's sha256.
    """
    opened = open_package(package, hashes=hashes, graph=graph)
    options = session_options(threads=threads, spinning=spinning, optimise=optimise, cpus=cpus)
    own = None if plain else own_kernels(kernels)
    try:
        if own is not None:
            options.register_custom_ops_library(str(own))
        if own or plain or not any(is_stored(node) for node in opened.model.graph.node):
            return _session(str(package / graph), options)  # ONNX Runtime maps the file itself
        return _expanded_session(opened, options)
    except ORT_ERRORS as error:
        raise InputError(f"{package}: ONNX Runtime cannot open the graph ({said(error)})") from error


def own_kernels(kernels: Kernels) -> Path | None:
    """The library to register, None to go without; MissingEnvironmentError if it is required and not there."""
    if kernels not in get_args(Kernels):
        raise InputError(f"kernels must be auto, require or off, got {kernels}")
    if kernels == "off":
        return None
    return library.require() if kernels == "require" else library.find()


def decoding_graph(package: Path, kernels: Kernels) -> str:
    """The graph a decoder should open: the fused one where it is there and tailcut's kernels run it."""
    fused = own_kernels(kernels) is not None and (package / FUSED_NAME).is_file()
    return FUSED_NAME if fused else MODEL_NAME


def session_options(
    *, threads: int | None, spinning: bool = True, optimise: bool = True, cpus: Sequence[int] = ()
) -> onnxruntime.SessionOptions:
    """One way to run for dense and sparse alike: sequential, all optimisations or none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong comes as an exception
    options.inter_op_num_threads = 1
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if len(cpus) > 1 and len(cpus) == threads:  # ONNX Runtime counts processors from 1 and leaves its caller alone
        pins = ";".join(str(cpu + 1) for cpu in cpus[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", pins)
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return options


def said(error: Exception) -> str:
    """What ONNX Runtime said, without its own codes before it."""
    return re.sub(
        r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Exception during initialization: )?", "", str(error).splitlines()[0]
    )


def _expanded_session(package: Package, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session whose sparse and quantised matrices were expanded to float32 by numpy, one at a time."""
    shapes = {
        matrix.name: matrix.shape for matrix in stored_matrices(package)
    }  # everything is checked before room is made
    arena = Arena([(shape[::-1], np.dtype(np.float32)) for shape in shapes.values()])
    for array, matrix in zip(arena.arrays, stored_matrices(package), strict=True):
        array[...] = matrix.dense().T
    model = _with_matmuls(package.model, dict(zip(shapes, arena.arrays, strict=True)))
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arena.arrays]
    options.add_external_initializers([f"{name}{_EXPANDED}" for name in shapes], values)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(package.directory))
    session = _session(model.SerializeToString(), options)
    session.tailcut_weights = values  # the runtime points into them
    arena.release()
    return session


def _with_matmuls(before: onnx.ModelProto, dense: Mapping[str, Array]) -> onnx.ModelProto:
    """The graph with a plain MatMul for every module of `dense` ([in, out])."""
    model = onnx.ModelProto()
    model.CopyFrom(before)
    for node in model.graph.node:
        if is_stored(node):
            inputs = [node.input[0], f"{node.name}{_EXPANDED}"]
            node.CopyFrom(helper.make_node("MatMul", inputs, list(node.output), name=node.name))
    used = {name for node in model.graph.node for name in node.input}  # a tied embedding is still looked up as stored
    kept = [tensor for tensor in before.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(_placeholder(f"{name}{_EXPANDED}", array) for name, array in dense.items())
    return model


def packed_matrices(package: Package) -> Iterator[tuple[str, Packed]]:
    """Every bitmask matrix of a package with its name, validated; the values of a quantised one are its integers."""
    for matrix in stored_matrices(package):
        if matrix.packed is not None:
            yield matrix.name, matrix.packed


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
ORT_ERRORS: Final = (
    _STATE.Fail,
    _STATE.InvalidGraph,
    _STATE.InvalidArgument,
    _STATE.RuntimeException,
    _STATE.NotImplemented,
)
