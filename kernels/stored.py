"""The matrices of a package as it holds them: sparse or dense, float or quantised, each checked before it is used.

A matrix is the weight of one node: a function of the domain `tailcut` with its parts as initializers (`PARTS`), in the
order of the node's inputs after x. W is [out, in].
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from tailcut.bitmask import Packed, unpack, validate
from tailcut.errors import InputError
from tailcut.kernels.package import Package
from tailcut.quantised import Integers, Scales, dequantise, groups, unpack_nibbles

DOMAIN: Final = "tailcut"
JOIN: Final = "+"  # between the modules that share one matrix
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "SparseMatMul": ("values", "mask", "shape"),
    "SparseMatMulInt8": ("values", "mask", "scales", "shape"),
    "SparseMatMulInt4": ("values", "mask", "scales", "shape"),
    "MatMulInt8": ("weight", "scales"),
    "MatMulInt4": ("weight", "scales", "shape"),
}
Array = npt.NDArray[Any]
Tensors = Mapping[str, onnx.TensorProto]


@dataclass(frozen=True, slots=True)
class Stored:
    """One matrix: `packed` when zeros are left out, else `q` int8 [out, in]; `scales` when it is quantised."""

    name: str
    kind: str
    shape: tuple[int, int]
    packed: Packed | None
    q: Integers | None
    scales: Scales | None

    @property
    def zeros(self) -> int:
        """Weights that are zero."""
        if self.packed is not None:
            return self.shape[0] * self.shape[1] - self.packed.values.size
        return 0 if self.q is None else int(self.q.size - np.count_nonzero(self.q))

    def dense(self) -> Array:
        """W [out, in]: float32, or the values' own type when it is not quantised."""
        values = self.q if self.packed is None else unpack(self.packed)
        if self.scales is None:
            return np.asarray(values)
        return dequantise(np.asarray(values, np.int8), self.scales)


def module_names(name: str) -> tuple[str, ...]:
    """The modules whose rows a matrix of this name holds, in order: a.q+k -> a.q, a.k."""
    first, *rest = name.split(JOIN)
    base = first.rpartition(".")[0]
    return (first, *(f"{base}.{part}" for part in rest))


def is_stored(node: onnx.NodeProto) -> bool:
    """Whether a node is a product with a matrix in one of tailcut's forms."""
    return bool(node.domain == DOMAIN and node.op_type in PARTS)


def stored_matrices(package: Package) -> Iterator[Stored]:
    """Every matrix in one of tailcut's forms, in the order of the graph."""
    tensors = {tensor.name: tensor for tensor in package.model.graph.initializer}
    for node in package.model.graph.node:
        if is_stored(node):
            yield stored_matrix(package, node, tensors)


def stored_matrix(package: Package, node: onnx.NodeProto, tensors: Tensors) -> Stored:
    """The validated matrix of one node; `tensors` are the graph's initializers by name."""
    where = f"{package.directory}: {node.name}"
    names, given = PARTS[node.op_type], list(node.input)[1:]
    if len(given) != len(names) or any(name not in tensors for name in given):
        raise InputError(f"{where} needs {', '.join(names)} stored in the package")
    parts = {name: package.array(tensors[key]) for name, key in zip(names, given, strict=True)}
    shape = _shape(parts, where)
    scales = _scales(parts, shape, node.op_type, where)
    if "mask" in parts:
        packed = _packed(parts, shape, node.op_type, where)
        return Stored(node.name, node.op_type, shape, packed, None, scales)
    return Stored(node.name, node.op_type, shape, None, _dense(parts, shape, node.op_type, where), scales)


def _shape(parts: Mapping[str, Array], where: str) -> tuple[int, int]:
    if "shape" not in parts:
        rows = parts["weight"]
        if rows.ndim != 2:
            raise InputError(f"{where} has a weight of shape {list(rows.shape)}, a matrix is needed")
        return int(rows.shape[0]), int(rows.shape[1])
    shape = parts["shape"]
    if shape.shape != (2,) or shape.dtype != np.int64:
        raise InputError(f"{where} has a shape entry of {shape.dtype} {list(shape.shape)}")
    return int(shape[0]), int(shape[1])


def _scales(parts: Mapping[str, Array], shape: tuple[int, int], kind: str, where: str) -> Scales | None:
    if "scales" not in parts:
        return None
    scales, want = parts["scales"], (shape[0],) if kind.endswith("Int8") else (shape[0], groups(shape[1]))
    if scales.dtype != np.float32 or scales.shape != want:
        raise InputError(f"{where} needs float32 scales {list(want)}, has {scales.dtype} {list(scales.shape)}")
    return scales


def _packed(parts: Mapping[str, Array], shape: tuple[int, int], kind: str, where: str) -> Packed:
    values, mask = parts["values"], parts["mask"]
    wanted = {"SparseMatMulInt8": np.int8, "SparseMatMulInt4": np.uint8}.get(kind)
    if wanted is not None and values.dtype != wanted:
        raise InputError(f"{where} needs values of {np.dtype(wanted).name}, has {values.dtype}")
    if kind == "SparseMatMulInt4":
        count = int(np.bitwise_count(mask).sum(dtype=np.int64)) if mask.dtype == np.uint8 else -1
        if values.ndim != 1 or values.size != (count + 1) // 2:
            raise InputError(f"{where}: mask names {count} weights, {values.size} bytes of 4-bit values are stored")
        values = unpack_nibbles(values, count)
    packed = Packed(values, mask, shape)
    validate(packed, where)
    return packed


def _dense(parts: Mapping[str, Array], shape: tuple[int, int], kind: str, where: str) -> Integers:
    weight, (rows, columns) = parts["weight"], shape
    dtype, want = (np.int8, shape) if kind == "MatMulInt8" else (np.uint8, (rows, (columns + 1) // 2))
    if weight.dtype != dtype or weight.shape != want:
        raise InputError(
            f"{where} needs a weight of {np.dtype(dtype).name} {list(want)}, has {weight.dtype} {list(weight.shape)}"
        )
    return np.asarray(weight, np.int8) if kind == "MatMulInt8" else unpack_nibbles(weight, columns)
