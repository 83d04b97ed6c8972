"""Graphs with external weights, read and rewritten one tensor at a time: what makes an engine's variant of a package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tailcut.errors import InputError
from tailcut.kernels.package import DATA_NAME, append_tensor, locate, read_model

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StoredGraph:
    """A graph whose weights are left on disk until they are asked for."""

    path: Path
    model: onnx.ModelProto
    tensors: Mapping[str, TensorProto]

    def array(self, name: str) -> Array:
        """A tensor's values: a read-only view of the data file, or the graph's own bytes."""
        tensor = self.tensors[name]
        if tensor.data_location != TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        place = locate(tensor, self.path.parent)
        data = self.path.with_name(place.file)
        if not data.is_file() or data.stat().st_size < place.stop:
            raise InputError(f"{data}: does not hold tensor {name} (it ends at byte {place.stop}); export again")
        shape = tuple(tensor.dims)
        return np.memmap(data, place.dtype, "r", place.offset, shape) if place.count else np.empty(shape, place.dtype)


def open_graph(path: Path) -> StoredGraph:
    model = read_model(path)
    return StoredGraph(path, model, {tensor.name: tensor for tensor in model.graph.initializer})


def is_linear(node: onnx.NodeProto, graph: StoredGraph) -> bool:
    """x times a stored float32 matrix: MatMul, or Gemm as a tied output matrix reads the embedding table."""
    if node.domain or node.op_type not in ("MatMul", "Gemm") or len(node.input) != 2:
        return False
    settings = {attribute.name: attribute for attribute in node.attribute}
    plain = node.op_type == "MatMul" or (set(settings) == {"transB"} and settings["transB"].i == 1)
    tensor = graph.tensors.get(node.input[1])
    return bool(plain and tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT)


def weight_of(node: onnx.NodeProto, graph: StoredGraph) -> npt.NDArray[np.float32]:
    """The matrix of a linear as float32 [in, out]."""
    array = graph.array(node.input[1])
    return array.T if node.op_type == "Gemm" else array


@dataclass(slots=True)
class TensorFile:
    """New tensors, appended to one data file as they come. Storing a name twice keeps the first."""

    stream: BinaryIO
    stored: dict[str, TensorProto] = field(default_factory=dict)

    def store(self, name: str, array: Array) -> str:
        if name not in self.stored:
            self.stored[name] = append_tensor(self.stream, DATA_NAME, name, array)
        return name

    def keep(self, name: str, graph: StoredGraph) -> None:
        """Take a tensor over as it is."""
        tensor = graph.tensors[name]
        if tensor.data_location == TensorProto.EXTERNAL:
            self.store(name, graph.array(name))
        else:
            self.stored.setdefault(name, tensor)


def rewritten(graph: StoredGraph, nodes: list[onnx.NodeProto], file: TensorFile, domain: str = "") -> onnx.ModelProto:
    """The model with these nodes and the tensors they use; `domain` is imported if it was not."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name in graph.tensors:
        if name in used:
            file.keep(name, graph)
    model.graph.initializer.extend(tensor for name, tensor in file.stored.items() if name in used)
    if domain and not any(entry.domain == domain for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model
