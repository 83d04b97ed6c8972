"""tailcut::SwiGLU as ONNX Runtime runs it, against float64."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from onnx import TensorProto, helper

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def session(kernel_library: Path) -> onnxruntime.InferenceSession:
    node = helper.make_node("SwiGLU", ["x"], ["y"], domain="tailcut")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["r", f"n_{name}"]) for name in "xy"]
    graph = helper.make_graph([node], "swiglu", [values[0]], [values[1]])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("tailcut", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(kernel_library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, gate: Array, up: Array) -> Array:
    found = session.run(None, {"x": np.concatenate([gate, up], axis=-1).astype(np.float32)})[0]
    return np.asarray(found, np.float64)


def formula(gate: Array, up: Array) -> Array:
    wide = gate.astype(np.float32).astype(np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(wide / (1 + np.exp(-wide)) * up.astype(np.float32).astype(np.float64))


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 1003])
def test_within_four_units_in_the_last_place(session: onnxruntime.InferenceSession, n: int) -> None:
    rng = np.random.default_rng(n)
    gate = rng.standard_normal((40, n)) * 10.0 ** rng.integers(-40, 3, (40, n))
    up = rng.standard_normal((40, n)) * 10.0 ** rng.integers(-40, 30, (40, n))
    want = formula(gate, up)
    unit = np.maximum(np.spacing(np.abs(want).astype(np.float32)).astype(np.float64), 2.0**-149)
    assert (np.abs(run(session, gate, up) - want) <= 4 * unit).all()


def test_special_values_follow_the_formula(session: onnxruntime.InferenceSession) -> None:
    special = np.asarray([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -100.0, 3e38, -3e38])
    gate, up = (np.asarray(part).ravel()[None] for part in np.meshgrid(special, special))
    found, want = run(session, gate, up), formula(gate, up)
    # float64's exp(-g) is infinite below -745 and g / inf * inf NaN, float32's product below is 0 * inf as well or inf
    clear = ~((gate == -3e38) & np.isinf(up))
    with np.errstate(over="ignore"):
        want = want.astype(np.float32).astype(np.float64)
    assert np.array_equal(np.isnan(found[clear]), np.isnan(want[clear]))
    finite = clear & np.isfinite(want)
    assert np.allclose(found[finite], want[finite], rtol=2.0**-21, atol=2.0**-147)  # 4 units in the last place
    assert np.array_equal(found[clear & np.isinf(want)], want[clear & np.isinf(want)])
