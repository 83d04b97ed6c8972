"""The package's matrices as model-local functions: any ONNX runtime can run them, a kernel library can replace them.

All W are [out, in]; x float32 [..., in] -> y = x @ W^T [..., out].

    tailcut::SparseMatMul(x, values, mask, shape)              values float32, float16 or bfloat16 [nnz]
    tailcut::SparseMatMulInt8(x, values, mask, scales, shape)  values int8 [nnz], W = q * scales[row]
    tailcut::SparseMatMulInt4(x, values, mask, scales, shape)  values uint8 [ceil(nnz / 2)], one stream of nibbles q + 8,
                                                               low first; W = q * scales[row, column // 128]
    tailcut::MatMulInt8(x, weight, scales)                     weight int8 [out, in]
    tailcut::MatMulInt4(x, weight, scales, shape)              weight uint8 [out, ceil(in / 2)], nibbles as above
    tailcut::BitmaskToDense(values, mask, shape) -> W          mask uint8 [out, ceil(in / 8)] (see tailcut.bitmask)
    tailcut::NibblesToInt4(bytes) -> q                         uint8 [..., n] -> float32 [..., 2 n]
    tailcut::SpreadScales(scales, shape) -> s                  [out, groups] -> [out, in]
    tailcut::SwiGLU(gate_up) -> silu(gate) * up                [..., 2 n] -> [..., n]

The bodies are standard ops and compute in float32: weights are dequantised, activations untouched. (Kernels quantise
activations to int8, or to two int8 parts where the attribute activation_bits of an integer op is 16; that difference is
theirs.) A runtime that folds constants decodes once, at load.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tailcut.kernels.stored import DOMAIN
from tailcut.quantised import GROUP

SPARSE_MATMUL: Final = "SparseMatMul"
SPARSE_INT8: Final = "SparseMatMulInt8"
SPARSE_INT4: Final = "SparseMatMulInt4"
DENSE_INT8: Final = "MatMulInt8"
DENSE_INT4: Final = "MatMulInt4"
INTEGER_OPS: Final = frozenset({SPARSE_INT8, SPARSE_INT4, DENSE_INT8, DENSE_INT4})
ACTIVATION_BITS: Final = "activation_bits"  # for kernels: 8, or 16 (activations in two int8 parts)
SWIGLU: Final = "SwiGLU"
_DECODE: Final = "BitmaskToDense"
NIBBLES: Final = "NibblesToInt4"
_SPREAD: Final = "SpreadScales"
Nodes = list[onnx.NodeProto]
Body = tuple[list[str], str, Callable[[], Nodes]]  # inputs, output, nodes


def functions_for(nodes: Iterable[onnx.NodeProto], opset: int) -> list[onnx.FunctionProto]:
    """What a graph of these nodes needs, in a fixed order; they import the model's own opset."""
    wanted = {node.op_type for node in nodes if node.domain == DOMAIN and node.op_type in _BODIES}
    bodies = {name: build() for name, (_, _, build) in _BODIES.items()}
    for name in reversed(_BODIES):  # a body uses only what stands before it
        if name in wanted:
            wanted |= {node.op_type for node in bodies[name] if node.domain == DOMAIN}
    return [_function(name, bodies[name], opset) for name in _BODIES if name in wanted]


def _function(name: str, nodes: Nodes, opset: int) -> onnx.FunctionProto:
    inputs, output, _ = _BODIES[name]
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    uses_own = any(node.domain == DOMAIN for node in nodes)
    made = helper.make_function(DOMAIN, name, inputs, [output], nodes, imports[: 1 + uses_own])
    if name in INTEGER_OPS:
        made.attribute_proto.append(helper.make_attribute(ACTIVATION_BITS, 8))
    return made


def _decode() -> Nodes:
    """A running count of the mask bits numbers the values; entry 0 of the table is zero, so a cleared bit gathers zero.

    (`Where` would do the same but has no float16 kernel on ONNX Runtime's CPU, which would keep it in the hot path.)
    """
    return [
        _constant("bit", 1 << np.arange(8), np.uint8),
        _constant("last", [-1]),
        _constant("row_bits", [0, -1]),
        _constant("zero", [0]),
        _constant("one", [1]),
        _constant("two", [2]),
        _constant("axis", 0),
        _node("Unsqueeze", "mask last", "bytes"),  # [out, width, 1]
        _node("BitwiseAnd", "bytes bit", "bits"),  # [out, width, 8]
        _node("Cast", "bits", "flags", to=TensorProto.BOOL),
        _node("Cast", "flags", "counts", to=TensorProto.INT32),
        _node("Reshape", "counts row_bits", "padded"),  # [out, 8 width]
        _node("Slice", "shape one two zero", "columns"),
        _node("Slice", "padded zero columns one", "keep"),  # [out, in]
        _node("Reshape", "keep last", "flat"),
        _node("CumSum", "flat axis", "number"),
        _node("Mul", "number flat", "index"),  # 0 where the weight is zero, else its 1-based number
        _node("CastLike", "zero values", "nothing"),
        _node("Concat", "nothing values", "table", axis=0),
        _node("Gather", "table index", "gathered", axis=0),
        _node("Reshape", "gathered shape", "weight"),
    ]


def _nibbles() -> Nodes:
    return [
        _constant("low_half", 15, np.uint8),
        _constant("four", 4, np.uint8),
        _constant("offset", 8, np.float32),
        _constant("last", [-1]),
        _constant("two", [2]),
        _node("BitwiseAnd", "bytes low_half", "low"),
        _node("BitShift", "bytes four", "high", direction="RIGHT"),
        _node("Unsqueeze", "low last", "low_column"),
        _node("Unsqueeze", "high last", "high_column"),
        _node("Concat", "low_column high_column", "pairs", axis=-1),  # [..., n, 2]
        _node("Shape", "bytes", "lead", end=-1),
        _node("Shape", "bytes", "count", start=-1),
        _node("Mul", "count two", "doubled"),
        _node("Concat", "lead doubled", "size", axis=0),
        _node("Reshape", "pairs size", "halves"),
        _node("Cast", "halves", "real", to=TensorProto.FLOAT),
        _node("Sub", "real offset", "q"),
    ]


def _spread() -> Nodes:
    return [
        _constant("last", [-1]),
        _constant("width", [1, 1, GROUP]),
        _constant("flat", [0, -1]),
        _constant("zero", [0]),
        _constant("one", [1]),
        _constant("two", [2]),
        _node("Unsqueeze", "scales last", "column"),
        _node("Expand", "column width", "repeated"),  # [out, groups, 128]
        _node("Reshape", "repeated flat", "rows"),
        _node("Slice", "shape one two zero", "columns"),
        _node("Slice", "rows zero columns one", "s"),
    ]


def _product(weight: str) -> Nodes:
    return [_node("Transpose", weight, "transposed", perm=[1, 0]), _node("MatMul", "x transposed", "y")]


def _sparse() -> Nodes:
    return [_node("CastLike", "values x", "real"), _own(_DECODE, "real mask shape", "weight"), *_product("weight")]


def _sparse_int8() -> Nodes:
    return [
        _node("Cast", "values", "real", to=TensorProto.FLOAT),
        _own(_DECODE, "real mask shape", "q"),
        *_scale_rows(),
        *_product("weight"),
    ]


def _sparse_int4() -> Nodes:
    return [
        _own(NIBBLES, "values", "real"),  # one more than there are when nnz is odd; nothing points at it
        _own(_DECODE, "real mask shape", "q"),
        _own(_SPREAD, "scales shape", "s"),
        _node("Mul", "q s", "weight"),
        *_product("weight"),
    ]


def _dense_int8() -> Nodes:
    return [_node("Cast", "weight", "q", to=TensorProto.FLOAT), *_scale_rows("scaled"), *_product("scaled")]


def _dense_int4() -> Nodes:
    return [
        _own(NIBBLES, "weight", "padded"),
        _constant("zero", [0]),
        _constant("one", [1]),
        _constant("two", [2]),
        _node("Slice", "shape one two zero", "columns"),
        _node("Slice", "padded zero columns one", "q"),
        _own(_SPREAD, "scales shape", "s"),
        _node("Mul", "q s", "scaled"),
        *_product("scaled"),
    ]


def _scale_rows(made: str = "weight") -> Nodes:
    return [_constant("end", [-1]), _node("Unsqueeze", "scales end", "column"), _node("Mul", "q column", made)]


def _swiglu() -> Nodes:
    return [
        helper.make_node("Split", ["gate_up"], ["gate", "up"], axis=-1, num_outputs=2),
        _node("Sigmoid", "gate", "sigmoid"),
        _node("Mul", "gate sigmoid", "silu"),
        _node("Mul", "silu up", "y"),
    ]


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:  # noqa: ANN401 attributes are ONNX's
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def _own(kind: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], domain=DOMAIN)


def _constant(name: str, values: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(values, dtype), name))


_BODIES: Final[dict[str, Body]] = {
    _DECODE: (["values", "mask", "shape"], "weight", _decode),
    NIBBLES: (["bytes"], "q", _nibbles),
    _SPREAD: (["scales", "shape"], "s", _spread),
    SPARSE_MATMUL: (["x", "values", "mask", "shape"], "y", _sparse),
    SPARSE_INT8: (["x", "values", "mask", "scales", "shape"], "y", _sparse_int8),
    SPARSE_INT4: (["x", "values", "mask", "scales", "shape"], "y", _sparse_int4),
    DENSE_INT8: (["x", "weight", "scales"], "y", _dense_int8),
    DENSE_INT4: (["x", "weight", "scales", "shape"], "y", _dense_int4),
    SWIGLU: (["gate_up"], "y", _swiglu),
}
MATRIX_FUNCTIONS: Final = frozenset(_BODIES)
