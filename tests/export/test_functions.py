"""The function bodies: every form on odd shapes, in the reference evaluator and in plain ONNX Runtime, folded or not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tailcut.export.forms import Form, encode
from tailcut.export.functions import SWIGLU, functions_for
from tailcut.export.quantise import round_trip
from tailcut.kernels.stored import DOMAIN

OPSET = 21
# a row of one weight, columns that end inside a byte or a group, nothing left, nothing cut
SHAPES = [(3, 8, 0.5), (5, 13, 0.3), (1, 1, 1.0), (4, 9, 0.0), (7, 300, 0.6), (6, 257, 1.0)]
Arrays = Mapping[str, np.ndarray]  # type: ignore[type-arg]


def one_node(op: str, parts: Arrays, inputs: list[Any], outputs: list[Any], kind: int = 1) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *parts], ["y"], domain=DOMAIN)],
        "one node",
        [helper.make_tensor_value_info("x", kind, inputs)],
        [helper.make_tensor_value_info("y", kind, outputs)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in parts.items()],
    )
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    functions = functions_for(graph.node, OPSET)
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return model


def runtime(model: onnx.ModelProto, x: Any, *, optimise: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def form_of(weight: Any, layout: str, precision: Any) -> Form:
    return encode(weight, layout, precision)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "columns", "density"), SHAPES)
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("layout", ["bitmask", "dense"])
def test_every_form_multiplies_by_what_is_stored(
    layout: str, precision: Any, rows: int, columns: int, density: float
) -> None:
    rng = np.random.default_rng(rows * columns)
    weight = (rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density)).astype(np.float32)
    if layout == "dense" and precision in ("float16", "bfloat16"):
        return  # that form does not exist: test_halves_have_no_dense_form
    form = form_of(weight, layout, precision)
    if form.domain == "":
        assert np.array_equal(form.parts["weight"], weight.T)
        return
    x = np.eye(columns, dtype=np.float32)  # so that y = W^T, one product a number: exact
    model = one_node(form.op, form.parts, ["n", columns], ["n", rows])
    want = round_trip(weight, precision).T
    assert np.array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], want)
    for optimise in (True, False):
        assert np.array_equal(runtime(model, x, optimise=optimise), want), optimise


def test_float16_activations_work_too() -> None:
    weight = np.where(np.random.default_rng(0).random((5, 13)) < 0.3, np.float32(1.5), np.float32(0))
    form = form_of(weight, "bitmask", "float16")
    model = one_node(form.op, form.parts, [13, 13], [13, 5], onnx.TensorProto.FLOAT16)
    x = np.eye(13, dtype=np.float16)
    assert np.array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], weight.T.astype(np.float16))


@pytest.mark.parametrize("width", [1, 5])
def test_swiglu(width: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 2 * width)).astype(np.float32)
    gate, up = x[..., :width].astype(np.float64), x[..., width:].astype(np.float64)
    model = one_node(SWIGLU, {}, [2, 3, 2 * width], [2, 3, width])
    want = gate / (1 + np.exp(-gate)) * up
    for got in (ReferenceEvaluator(model).run(None, {"x": x})[0], runtime(model, x, optimise=True)):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)  # float32 sigmoid and two products


def test_a_graph_gets_only_the_functions_it_uses() -> None:
    def names(*ops: str) -> list[str]:
        nodes = [helper.make_node(op, ["x"], ["y"], domain=DOMAIN) for op in ops]
        return [function.name for function in functions_for(nodes, OPSET)]

    assert names() == []
    assert names("MatMulInt8", "SwiGLU") == ["MatMulInt8", "SwiGLU"]
    assert names("SparseMatMul") == ["BitmaskToDense", "SparseMatMul"]
    assert names("SparseMatMulInt4") == ["BitmaskToDense", "NibblesToInt4", "SpreadScales", "SparseMatMulInt4"]


def test_the_inliner_gives_standard_ops_only() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    form = form_of(weight, "dense", "int4")
    model = onnx.inliner.inline_local_functions(one_node(form.op, form.parts, ["n", 9], ["n", 4]))
    assert {node.domain for node in model.graph.node} == {""}
    assert np.array_equal(runtime(model, np.eye(9, dtype=np.float32), optimise=True), round_trip(weight, "int4").T)
