"""bitmask <-> dense <-> coo keeps every bit; coordinates that lie are refused before memory is taken."""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

from tailcut.bitmask import pack, unpack
from tailcut.coo import MAX_DENSE_BYTES, Coo, coo_is_smaller, from_coo, to_coo
from tailcut.errors import InputError
from tailcut.onnx_files import TensorReader, sparse_tensor

DTYPES: tuple[Any, ...] = (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.float64, np.uint8)
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def same_bits(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def round_trips(dense: np.ndarray[Any, Any], tmp: Any = None) -> None:
    """dense -> bitmask -> dense -> coo -> dense -> bitmask, and coo through ONNX's own message."""
    packed = pack(dense)
    from_mask = unpack(packed)
    assert same_bits(from_mask, dense)
    coo = to_coo(from_mask)
    assert coo.values.tobytes() == packed.values.tobytes()
    from_places = from_coo(coo)
    assert same_bits(from_places, dense)
    pairs = np.stack(np.unravel_index(coo.indices, coo.shape), axis=1).astype(np.int64)
    assert same_bits(from_coo(Coo(coo.values, pairs, coo.shape)), dense)
    again = pack(from_places)
    assert again.mask.tobytes() == packed.mask.tobytes()
    assert again.values.tobytes() == packed.values.tobytes()
    message = sparse_tensor("w", dense)
    message.ParseFromString(message.SerializeToString())
    assert same_bits(TensorReader(tmp).read_sparse(message), dense)


def special(dtype: Any) -> np.ndarray[Any, Any]:
    if np.dtype(dtype).kind in "iu":
        return np.array([0, 1, np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    return np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, ml_dtypes.finfo(dtype).smallest_subnormal], dtype)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9), (1, 17), (16, 8), (5, 1), (0, 4), (4, 0)])
def test_adversarial_values_survive(dtype: Any, shape: tuple[int, int]) -> None:
    values = special(dtype)
    round_trips(np.resize(values, shape).astype(dtype))
    round_trips(np.zeros(shape, dtype))
    round_trips(np.ones(shape, dtype))
    one = np.zeros(shape, dtype)
    if one.size:
        one.reshape(-1)[-1] = values[1]  # alone in its corner: -0.0, or 1 of an integer
        round_trips(one)


def bits(dtype: Any) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Matrices of every bit pattern, half of them zero."""
    unsigned = UNSIGNED[np.dtype(dtype).itemsize]
    shape = st.tuples(st.integers(0, 13), st.integers(0, 21))
    top = int(np.iinfo(unsigned).max)
    return arrays(unsigned, shape, elements=st.one_of(st.just(0), st.integers(0, top))).map(lambda a: a.view(dtype))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(DTYPES).flatmap(bits))
def test_any_bits_survive(dense: np.ndarray[Any, Any]) -> None:
    round_trips(dense)


def test_where_coordinates_are_smaller() -> None:
    dense = np.zeros((30, 10), np.float32)
    dense.reshape(-1)[:99] = 1
    assert coo_is_smaller(dense)  # 67 % zeros in float32
    dense.reshape(-1)[:100] = 1
    assert not coo_is_smaller(dense)
    assert not coo_is_smaller(np.zeros((0, 4), np.float32))


def test_standard_readers_open_it() -> None:
    """ONNX's checker accepts the structure and ONNX Runtime multiplies by it."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((9, 6)) < 0.8, 0, rng.standard_normal((9, 6))).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        sparse_initializer=[sparse_tensor("w", dense)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.eye(9, dtype=np.float32)[3:4]})
    assert np.array_equal(got[0], dense[3])


ONE = np.ones(2, np.float32)
HOSTILE = {
    "beyond the 2 GiB": Coo(ONE, np.array([0, 1]), (1 << 40, 1 << 40)),
    "beyond the 2 GiB that": Coo(ONE, np.array([0, 1]), (-1, 4)),
    "there are int32": Coo(ONE, np.array([0, 1], np.int32), (2, 2)),
    "2 values need int64 indices": Coo(ONE, np.array([0, 1, 2]), (2, 2)),
    "must ascend, each once": Coo(ONE, np.array([1, 1]), (2, 2)),
    "must ascend": Coo(ONE, np.array([1, 0]), (2, 2)),
    "from 0 to 3": Coo(ONE, np.array([0, 4]), (2, 2)),
    "from 0 to": Coo(ONE, np.array([-1, 1]), (2, 2)),
    "lies outside": Coo(ONE, np.array([[0, 0], [0, 2]]), (2, 2)),
    "one or 2 each": Coo(np.ones((2, 1), np.float32), np.array([0, 1]), (2, 2)),
}


@pytest.mark.parametrize("sentence", HOSTILE)
def test_coordinates_that_lie_are_refused(sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        from_coo(HOSTILE[sentence], "w")
    assert MAX_DENSE_BYTES < 1 << 31
