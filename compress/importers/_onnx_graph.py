"""The constant matrices of a foreign ONNX graph: which product each belongs to, how it is stored, what it says.

    dense            MatMul or Gemm with a float weight, through Transpose, Identity and Cast (SparseML's dense zeros)
    coo              the same with a sparse initializer
    QDQ              the weight is DequantizeLinear of integers (of an initializer, or of QuantizeLinear of a float one)
    MatMulInteger    ... -> MatMulInteger -> (Add) -> Cast -> Mul: SparseML's conversion and ONNX Runtime's quantize_dynamic
    QLinearMatMul, DynamicQuantizeMatMul, MatMulIntegerToFloat   integers and scales as inputs of one node

W is [out, in] = (q - zero point) * scale. Nothing is run; constants are followed for at most a few steps, so that a cycle ends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, SparseTensorProto, TensorProto, helper

from tailcut.bitmask import Array
from tailcut.errors import InputError
from tailcut.onnx_files import TensorReader, locate, read_model

_STEPS: Final = 12  # along constants, or from a product to its scale
_INTEGERS: Final = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)
_PASSING: Final = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
# op -> places of the weight, its scale and its zero point among the inputs
_ONE_NODE: Final = {"QLinearMatMul": (3, 4, 5), "DynamicQuantizeMatMul": (1, 2, 3), "MatMulIntegerToFloat": (1, 3, 5)}


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of the graph: values, and for integers scale, zero point (shape of the scale) and the axis of both."""

    array: Array
    kind: str = "dense"
    scale: Array | None = None
    zero: Array | None = None
    axis: int = 0

    def transposed(self) -> "Constant":
        flipped = 1 - self.axis if self.array.ndim == 2 else self.axis
        return Constant(self.array.T, self.kind, self.scale, self.zero, flipped)

    def dense(self) -> Array:
        """float32 values of integers; floats as they are."""
        if self.scale is None:
            return self.array
        shifted = self.shifted()
        return np.asarray(shifted * self._along(self.scale), np.float32)

    def shifted(self) -> npt.NDArray[np.int32]:
        """q - zero point."""
        zero = 0 if self.zero is None else self._along(np.asarray(self.zero, np.int32))
        return np.asarray(self.array.astype(np.int32) - zero, np.int32)

    def _along(self, part: Array) -> npt.NDArray[Any]:
        if part.size == 1:
            return part.reshape(())
        sizes = [1] * self.array.ndim
        sizes[self.axis] = -1
        return part.reshape(sizes)


@dataclass(frozen=True, slots=True)
class OnnxLinear:
    """One product with a constant matrix. `labels` are the names it may be recognised by; `read` gives W [out, in]."""

    labels: tuple[str, ...]
    kind: str
    bits: int
    shape: tuple[int, int]
    stored_bytes: int
    read: Callable[[], Constant]


class OnnxGraph:
    """A graph with its constants within reach; the file's weights stay on disk until they are read."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, read_model(path)
        self._reader = TensorReader(path.parent)
        graph = self.model.graph
        self.tensors: dict[str, TensorProto | SparseTensorProto] = {t.name: t for t in graph.initializer}
        self.tensors |= {t.values.name: t for t in graph.sparse_initializer}
        self._producers: dict[str, NodeProto] = {}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if attribute.name in ("value", "sparse_value"):
                    self.tensors[node.output[0]] = attribute.t if attribute.name == "value" else attribute.sparse_tensor
            for name in filter(None, node.output):
                if name in self._producers:
                    raise InputError(f"{path}: the value {name} is made by two nodes; the graph is damaged")
                self._producers[name] = node
            for name in filter(None, node.input):
                self._consumers.setdefault(name, []).append(node)

    def linears(self) -> Iterator[OnnxLinear]:
        """Every product with a constant matrix, in the order of the graph."""
        for node in self.model.graph.node:
            found = self._linear(node)
            if found is not None:
                yield found

    def external_files(self) -> set[str]:
        """Names of the files beside the graph that its tensors lie in."""
        found = set()
        for tensor in self.tensors.values():
            parts = (tensor.values, tensor.indices) if isinstance(tensor, SparseTensorProto) else (tensor,)
            for part in parts:
                if part.data_location == TensorProto.EXTERNAL:
                    found.add(locate(part, self.path.parent).file)
        return found

    def parameters(self) -> int:
        """Entries of all constants; sparse ones as if they were written out."""
        return sum(int(np.prod([int(size) for size in tensor.dims], dtype=object)) for tensor in self.tensors.values())

    def notes(self) -> tuple[str, ...]:
        """What the graph holds that no matrix of `linears` tells."""
        kinds = [node.op_type for node in self.model.graph.node]
        blocks = kinds.count("MatMulNBits")
        found = [f"{blocks} MatMulNBits with weights in 4- or 8-bit blocks, which are not read"] if blocks else []
        opset = next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        return (f"opset {opset}, IR {self.model.ir_version}, {len(kinds)} nodes", *found)

    def table(self, names: tuple[str, ...]) -> Constant | None:
        """The table of a Gather (a token embedding) that one of `names` stands for, quantised or not."""
        for node in self.model.graph.node:
            if node.op_type == "Gather" and any(wanted in _dotted(node.input[0]) for wanted in names):
                found = self.constant(node.input[0])
                after = self._consumers.get(node.output[0], [])
                if found is not None and found.array.dtype.itemsize == 1 and found.scale is None and len(after) == 1:
                    return self._dequantised(found, after[0]) if after[0].op_type == "DequantizeLinear" else None
                return found
        return None

    def parameter(self, name: str) -> Constant | None:
        """What a parameter's name stands for: itself, through Identity, or its integers and their DequantizeLinear."""
        found = self.constant(name)
        if found is None:
            after = self._consumers.get(f"{name}_quantized", [])
            through = next((node for node in after if node.op_type == "DequantizeLinear"), None)
            found = self.constant(through.output[0]) if through is not None else None
        return found

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Sizes of a constant that is an initializer, None for anything else."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tuple(int(size) for size in tensor.dims)

    def constant(self, name: str, steps: int = _STEPS) -> Constant | None:
        """What a value is if it is constant, else None."""
        if not steps:
            return None
        if name in self.tensors:
            sparse = isinstance(self.tensors[name], SparseTensorProto)
            return Constant(self._values(name), "coo" if sparse else "dense")
        node = self._producers.get(name)
        if node is None or not node.input:
            return None
        if node.op_type in ("Identity", "Cast", "Transpose", "DequantizeLinear", "QuantizeLinear"):
            inner = self.constant(node.input[0], steps - 1)
            return None if inner is None else self._through(node, inner)
        return None

    def origin(self, name: str, steps: int = _STEPS) -> str | None:
        """The initializer that a constant comes from."""
        if name in self.tensors or not steps:
            return name if steps else None
        node = self._producers.get(name)
        return self.origin(node.input[0], steps - 1) if node is not None and node.input else None

    def _through(self, node: NodeProto, inner: Constant) -> Constant | None:
        if node.op_type == "Transpose":
            order = list(_attribute(node, "perm", []))
            return inner.transposed() if inner.array.ndim == 2 and order in ([], [1, 0]) else None
        if node.op_type == "DequantizeLinear":
            return self._dequantised(inner, node)
        if node.op_type == "QuantizeLinear":
            return self._quantised(inner, node)
        return inner  # Identity, and Cast: between float types the values are what counts

    def _dequantised(self, inner: Constant, node: NodeProto) -> Constant | None:
        scale, zero = self._input(node, 1), self._input(node, 2)
        if scale is None or _attribute(node, "block_size", 0):
            return None
        axis = int(_attribute(node, "axis", 1))
        made = Constant(inner.array, "QDQ", scale, zero, axis % max(1, inner.array.ndim))
        return _checked(made, f"{self.path}: {node.name or node.output[0]}")

    def _quantised(self, inner: Constant, node: NodeProto) -> Constant | None:
        """A float weight rounded as QuantizeLinear does: half to even, then into the range of the zero point's type."""
        scale, zero = self._input(node, 1), self._input(node, 2)
        dtype: np.dtype[Any] = np.dtype(np.uint8) if zero is None else zero.dtype
        if scale is None or inner.array.dtype.kind != "f" or dtype not in (np.int8, np.uint8):
            return None
        shape = Constant(inner.array, "QDQ", scale, zero, int(_attribute(node, "axis", 1)) % max(1, inner.array.ndim))
        _checked(shape, f"{self.path}: {node.name or node.output[0]}")
        offset = 0 if zero is None else shape._along(np.asarray(zero, np.int32))
        q = np.rint(inner.array / shape._along(scale)) + offset
        lowest, highest = (-128, 127) if dtype == np.int8 else (0, 255)
        return Constant(np.clip(q, lowest, highest).astype(dtype))

    def _linear(self, node: NodeProto) -> OnnxLinear | None:
        place = 1 if node.op_type in ("MatMul", "Gemm", "MatMulInteger") else _ONE_NODE.get(node.op_type, (0,))[0]
        if not place or len(node.input) <= place:
            return None
        source = self.origin(node.input[place])
        sizes = self.shape_of(source) if source is not None else None
        if source is None or sizes is None or len(sizes) != 2:
            return None
        first = self._weight(node)  # read once: what cannot be read is refused here, and its kind and shape are known
        if first is None:
            return None
        tensor = self.tensors[source]
        stored = _stored_bytes(tensor)
        bits = 8 * first.array.dtype.itemsize if first.scale is None else _bits_of(tensor, first)
        shape = (int(first.array.shape[0]), int(first.array.shape[1]))
        labels = tuple(dict.fromkeys((_dotted(source), _dotted(node.name), _dotted(node.output[0]))))
        return OnnxLinear(labels, first.kind, bits, shape, stored, lambda: self._require(node))

    def _require(self, node: NodeProto) -> Constant:
        found = self._weight(node)
        if found is None:
            raise InputError(f"{self.path}: the weight of {node.name} cannot be read")
        return found

    def _weight(self, node: NodeProto) -> Constant | None:
        """W [out, in] of a product, None where it is no constant."""
        if node.op_type in _ONE_NODE:
            return self._one_node(node)
        inner = self.constant(node.input[1])
        if inner is None or inner.array.ndim != 2:
            return None
        if node.op_type == "MatMulInteger":
            return self._integer(node, inner)
        if inner.scale is None and inner.array.dtype.kind not in "fV":
            return None
        if node.op_type == "Gemm" and (_attribute(node, "alpha", 1.0) != 1.0 or _attribute(node, "transA", 0)):
            return None
        return inner if node.op_type == "Gemm" and _attribute(node, "transB", 0) else inner.transposed()

    def _one_node(self, node: NodeProto) -> Constant | None:
        weight, scale, zero = _ONE_NODE[node.op_type]
        inner, factor = self.constant(node.input[weight]), self._input(node, scale)
        if inner is None or factor is None or inner.array.ndim != 2:
            return None
        made = Constant(inner.array, node.op_type, factor, self._input(node, zero), 1)
        return _checked(made, f"{self.path}: {node.name}").transposed()

    def _integer(self, node: NodeProto, inner: Constant) -> Constant | None:
        scale = self._scale_after(node)
        if scale is None:
            raise InputError(
                f"{self.path}: the scale of {node.name or node.output[0]} is not where SparseML and ONNX Runtime put it "
                "(Cast and Mul behind MatMulInteger); its weights cannot be read"
            )
        made = Constant(inner.array, "MatMulInteger", scale, self._input(node, 3), 1)
        return _checked(made, f"{self.path}: {node.name}").transposed()

    def _scale_after(self, node: NodeProto) -> Array | None:
        """Scale of the weights: MatMulInteger -> (Add) -> Cast -> Mul by input scale * weight scale, one of them constant."""
        value = node.output[0]
        for _ in range(_STEPS):
            after = self._consumers.get(value, [])
            if len(after) != 1:
                return None
            if after[0].op_type == "Mul":
                other = next((name for name in after[0].input if name != value), None)
                return None if other is None else self._weight_scale(other, node.input[0])
            if after[0].op_type not in ("Add", "Cast", *_PASSING):
                return None
            value = after[0].output[0]
        return None

    def _weight_scale(self, name: str, x: str) -> Array | None:
        whole = self.constant(name)
        if whole is not None:  # both scales in one constant: SparseML's static quantisation
            step = self._input_scale(x)
            return None if step is None else np.asarray(whole.dense().astype(np.float64) / step, np.float32).reshape(-1)
        product = self._producers.get(name)
        if product is None or product.op_type != "Mul":
            return None
        found = [constant for part in product.input if (constant := self.constant(part)) is not None]
        return np.asarray(found[0].dense(), np.float32).reshape(-1) if len(found) == 1 else None

    def _input_scale(self, x: str) -> npt.NDArray[np.float64] | None:
        """The scale with which a product's input was quantised, where it is constant."""
        for _ in range(_STEPS):
            node = self._producers.get(x)
            if node is None or not node.input:
                return None
            if node.op_type == "QuantizeLinear":
                scale = self._input(node, 1)
                return None if scale is None or scale.size != 1 or not scale.all() else np.asarray(scale, np.float64)
            if node.op_type not in _PASSING:
                return None
            x = node.input[0]
        return None

    def _input(self, node: NodeProto, place: int) -> Array | None:
        if len(node.input) <= place or not node.input[place]:
            return None
        found = self.constant(node.input[place])
        return None if found is None else found.array

    def _values(self, name: str) -> Array:
        tensor = self.tensors[name]
        return self._reader.read_sparse(tensor) if isinstance(tensor, SparseTensorProto) else self._reader.read(tensor)


def _checked(made: Constant, where: str) -> Constant:
    """Scale and zero point of one entry, or one each along the axis; finite and positive."""
    allowed = (1, made.array.shape[made.axis] if made.array.ndim else 1)
    for part in (made.scale, made.zero):
        if part is not None and part.size not in allowed:
            raise InputError(f"{where}: {part.size} scales or zero points for a weight of {list(made.array.shape)}")
    if made.scale is not None and not (
        np.isfinite(np.asarray(made.scale, np.float64)).all() and (np.asarray(made.scale, np.float64) > 0).all()
    ):
        raise InputError(f"{where}: a scale is not finite or not positive")
    return made


def _bits_of(tensor: TensorProto | SparseTensorProto, found: Constant) -> int:
    narrow = isinstance(tensor, TensorProto) and tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
    return 4 if narrow else 8 if found.scale is not None else 8 * found.array.dtype.itemsize


def _stored_bytes(tensor: TensorProto | SparseTensorProto) -> int:
    if isinstance(tensor, SparseTensorProto):
        return _stored_bytes(tensor.values) + _stored_bytes(tensor.indices)
    count = int(np.prod([int(size) for size in tensor.dims], dtype=object))
    half = tensor.data_type in (TensorProto.INT4, TensorProto.UINT4)
    return count // 2 if half else count * int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:  # noqa: ANN401  an attribute of any type
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def _dotted(name: str) -> str:
    """A name with the path separators of torch's exporter as dots."""
    return name.replace("/", ".").strip(".")
