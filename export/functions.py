"""The sparse linear as a model-local function: any ONNX runtime can run it, a kernel library can replace it.

    tailcut::SparseMatMul(x, values, mask, shape) -> x @ W^T
        x [..., in], values [nnz], mask uint8 [out, ceil(in / 8)] (see tailcut.bitmask), shape int64 [2] = (out, in)
    tailcut::BitmaskToDense(values, mask, shape) -> W [out, in]

The bodies are standard ops. A running count of the mask bits numbers the values; entry 0 of the table is zero, so a
cleared bit gathers zero. (`Where` would do the same but has no float16 kernel on ONNX Runtime's CPU, which
would keep the decoding in the hot path.) A runtime that folds constants decodes once, at load.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

DOMAIN: Final = "tailcut"
SPARSE_MATMUL: Final = "SparseMatMul"
BITMASK_TO_DENSE: Final = "BitmaskToDense"


def sparse_functions(opset: int) -> tuple[onnx.FunctionProto, onnx.FunctionProto]:
    """Both functions, importing the model's own opset (the checker refuses mixed ones)."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    matmul = helper.make_function(
        DOMAIN,
        SPARSE_MATMUL,
        ["x", "values", "mask", "shape"],
        ["y"],
        [
            helper.make_node(BITMASK_TO_DENSE, ["values", "mask", "shape"], ["weight"], domain=DOMAIN),
            helper.make_node("Transpose", ["weight"], ["transposed"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "transposed"], ["y"]),
        ],
        imports,
    )
    dense = helper.make_function(
        DOMAIN, BITMASK_TO_DENSE, ["values", "mask", "shape"], ["weight"], _decode_nodes(), imports[:1]
    )
    return dense, matmul


def _decode_nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        _constant("bit", (1 << np.arange(8)).astype(np.uint8)),
        _constant("last", np.asarray([-1], np.int64)),
        _constant("row_bits", np.asarray([0, -1], np.int64)),
        _constant("zero", np.asarray([0], np.int64)),
        _constant("one", np.asarray([1], np.int64)),
        _constant("two", np.asarray([2], np.int64)),
        _constant("axis", np.asarray(0, np.int64)),
        node("Unsqueeze", ["mask", "last"], ["bytes"]),  # [out, width, 1]
        node("BitwiseAnd", ["bytes", "bit"], ["bits"]),  # [out, width, 8]
        node("Cast", ["bits"], ["flags"], to=onnx.TensorProto.BOOL),
        node("Cast", ["flags"], ["counts"], to=onnx.TensorProto.INT32),
        node("Reshape", ["counts", "row_bits"], ["padded"]),  # [out, 8 width]
        node("Slice", ["shape", "one", "two", "zero"], ["columns"]),
        node("Slice", ["padded", "zero", "columns", "one"], ["keep"]),  # [out, in]
        node("Reshape", ["keep", "last"], ["flat"]),
        node("CumSum", ["flat", "axis"], ["number"]),
        node("Mul", ["number", "flat"], ["index"]),  # 0 where the weight is zero, else its 1-based number
        node("CastLike", ["zero", "values"], ["nothing"]),
        node("Concat", ["nothing", "values"], ["table"], axis=0),
        node("Gather", ["table", "index"], ["gathered"], axis=0),
        node("Reshape", ["gathered", "shape"], ["weight"]),
    ]


def _constant(name: str, array: npt.NDArray[Any]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))
