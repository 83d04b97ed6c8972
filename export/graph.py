"""A small ONNX graph writer: nodes by name, constants inline, weights into one external data file.

Weights stream: each tensor is appended to the data file (offsets are multiples of 4096, so that a runtime can map
pages) and dropped; only tensors below 1 KiB stay in the graph. Names of nodes and values are deterministic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from tailcut import __version__
from tailcut.bitmask import Array
from tailcut.export.attention import ATTENTION, MICROSOFT, attention_function
from tailcut.export.functions import functions_for
from tailcut.kernels.package import append_tensor
from tailcut.kernels.stored import DOMAIN


class DataFile:
    """The external data file of one package. Storing a name twice gives the same place (graphs may share it)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, TensorProto] = {}
        self._stream: BinaryIO = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stream.close()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def known(self, name: str) -> TensorProto:
        """The tensor stored under `name` before."""
        return self._places[name]

    def size(self, name: str) -> int:
        """Bytes of the tensor stored under `name`."""
        tensor = self._places[name]
        return int(np.prod(tensor.dims)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize

    def store(self, name: str, array: Array) -> TensorProto:
        """Append one tensor (or keep it inline when small) and describe it."""
        self._places[name] = append_tensor(self._stream, self._path.name, name, array)
        return self._places[name]


@dataclass(slots=True)
class Graph:
    """Collects one graph. `op` adds a node and returns its output's name."""

    data: DataFile
    opset: int
    scope: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    domains: set[str] = field(default_factory=set)

    def op(self, kind: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:  # noqa: ANN401 attributes are ONNX's
        """Add a node with one output."""
        return self.ops(kind, inputs, 1, name=name, domain=domain, **attributes)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: int,
        *,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 attributes are ONNX's
    ) -> tuple[str, ...]:
        """Add a node with several outputs."""
        label = name or f"{self.scope}/{kind}_{len(self.nodes)}"
        made = tuple(f"{label}:{index}" for index in range(outputs))
        self.node(kind, inputs, made, name=label, domain=domain, **attributes)
        return made

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        name: str,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 attributes are ONNX's
    ) -> None:
        """Add a node whose outputs are named by the caller ("" where an optional one is not wanted)."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        self.domains.add(domain)

    def rename(self, value: str, name: str) -> None:
        """Make an already produced value appear under the name of a graph output."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{name}/Identity"))

    def constant(self, values: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """A small constant; equal constants share one initializer."""
        array = np.asarray(values, dtype)
        shape = "x".join(map(str, array.shape)) or "scalar"
        name = f"constant/{array.dtype.name}/{shape}/{array.tobytes().hex()}"
        if name not in self.tensors:
            self.tensors[name] = helper.make_tensor(name, _onnx_type(array), array.shape, array.tobytes(), raw=True)
        return name

    def real(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(value, np.float32)

    def weight(self, name: str, array: Array) -> str:
        """A parameter, streamed to the data file."""
        self.tensors[name] = self.data.known(name) if name in self.data else self.data.store(name, array)
        return name

    def again(self, name: str) -> str:
        """A parameter that is in the data file already."""
        self.tensors[name] = self.data.known(name)
        return name

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> str:
        self.inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        self.rename(value, name)
        self.declare(name, shape)

    def declare(self, name: str, shape: Sequence[int | str], dtype: type[np.generic] = np.float32) -> str:
        """An output that a node makes under this very name."""
        self.outputs.append(_value(name, dtype, shape))
        return name

    def model(self, name: str, ir_version: int) -> onnx.ModelProto:
        """The finished model, with the functions it uses."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.tensors.values()))
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in (DOMAIN, MICROSOFT) if domain in self.domains]
        return helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=ir_version,
            functions=self._functions(),
            producer_name="tailcut",
            producer_version=__version__,
        )

    def _functions(self) -> list[onnx.FunctionProto]:
        attends = any(node.domain == DOMAIN and node.op_type == ATTENTION for node in self.nodes)
        halves = any(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in self.inputs)  # the cache
        own = [attention_function(self.opset, halves=halves)] if attends else []
        return functions_for(self.nodes, self.opset) + own


def _value(name: str, dtype: type[np.generic], shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _onnx_type(array: npt.NDArray[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
