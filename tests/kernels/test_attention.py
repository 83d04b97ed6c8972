"""tailcut::GroupQueryAttention: the kernel against a plain float64 computation and against ONNX Runtime's own operator."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tailcut.export.attention import ATTENTION, attention_function
from tailcut.kernels import library
from tailcut.kernels.stored import DOMAIN

Array = npt.NDArray[Any]
pytestmark = pytest.mark.skipif(library.find() is None, reason=str(library.problem()))
# float32 sums of up to 150 terms in another order, and exp within 2 ulp
TOLERANCE = 2e-5


def model(heads: int, kv: int, *, window: int = -1, softcap: float = 0.0, scale: float = 0.125) -> bytes:
    names = ["qkv", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos", "sin"]
    kinds = [TensorProto.FLOAT] * 3 + [TensorProto.INT32] * 2 + [TensorProto.FLOAT] * 2
    ranks = [3, 4, 4, 1, 0, 2, 2]
    inputs = [
        helper.make_tensor_value_info(n, kind, [None] * rank) for n, kind, rank in zip(names, kinds, ranks, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * r)
        for n, r in (("y", 3), ("present_key", 4), ("present_value", 4))
    ]
    attributes = {"num_heads": heads, "kv_num_heads": kv, "scale": scale, "local_window_size": window}
    node = helper.make_node(
        ATTENTION, names, [o.name for o in outputs], name="attention", domain=DOMAIN, softcap=softcap, **attributes
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    built = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=[attention_function(21)])
    return bytes(built.SerializeToString())


def session(model_bytes: bytes, *, own: bool, threads: int = 2) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if own:
        options.register_custom_ops_library(str(library.require()))
    return onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])


def feeds(
    batch: int, sequence: int, heads: int, kv: int, dim: int, *, lengths: list[int], capacity: int, rotated: int
) -> dict[str, Array]:
    """lengths: valid tokens of each row after this run."""
    rng = np.random.default_rng(5)
    angles = np.arange(capacity + 8)[:, None] * (10000.0 ** (-np.arange(rotated // 2) / max(1, rotated // 2)))[None]
    cache = (batch, kv, capacity, dim)
    return {
        "qkv": rng.standard_normal((batch, sequence, (heads + 2 * kv) * dim)).astype(np.float32),
        "past_key": rng.standard_normal(cache).astype(np.float32),
        "past_value": rng.standard_normal(cache).astype(np.float32),
        "seqlens_k": np.asarray(lengths, np.int32) - 1,
        "total_sequence_length": np.asarray(max(lengths), np.int32),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }


def turned(x: Array, position: int, given: dict[str, Array]) -> Array:
    half = given["cos"].shape[1]
    cos, sin = given["cos"][position].astype(np.float64), given["sin"][position].astype(np.float64)
    first, second = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], axis=-1)


def plain(
    given: dict[str, Array], heads: int, kv: int, *, window: int = -1, softcap: float = 0.0, scale: float = 0.125
) -> Array:
    """float64 outputs [batch, sequence, heads * dim]; rows of padding are left at NaN."""
    batch, sequence, _ = given["qkv"].shape
    dim = given["past_key"].shape[3]
    qkv = given["qkv"].astype(np.float64).reshape(batch, sequence, heads + 2 * kv, dim)
    keys, values = (given[name].astype(np.float64) for name in ("past_key", "past_value"))
    first = int(given["total_sequence_length"]) == sequence
    y = np.full((batch, sequence, heads, dim), np.nan)
    for b in range(batch):
        past = 0 if first else int(given["seqlens_k"][b]) + 1 - sequence
        for s in range(min(sequence, int(given["seqlens_k"][b]) + 1 - past)):
            keys[b, :, past + s] = turned(qkv[b, s, heads : heads + kv], past + s, given)
            values[b, :, past + s] = qkv[b, s, heads + kv :]
        for s in range(min(sequence, int(given["seqlens_k"][b]) + 1 - past)):
            queries, seen = turned(qkv[b, s, :heads], past + s, given), past + s + 1
            begin = max(0, seen - window) if window > 0 else 0
            for h in range(heads):
                scores = keys[b, h // (heads // kv), begin:seen] @ queries[h] * scale
                scores = softcap * np.tanh(scores / softcap) if softcap else scores
                weights = np.exp(scores - scores.max())
                y[b, s, h] = weights / weights.sum() @ values[b, h // (heads // kv), begin:seen]
    return y.reshape(batch, sequence, heads * dim)


CASES = [
    # heads, kv, dim, rotated, sequence, lengths, capacity, window, softcap
    pytest.param(4, 2, 16, 16, 5, [5], 32, -1, 0.0, id="prompt"),
    pytest.param(9, 3, 64, 64, 1, [130], 160, -1, 0.0, id="decode-two-blocks-and-a-bit"),
    pytest.param(8, 1, 32, 32, 1, [65], 65, -1, 0.0, id="decode-cache-full"),
    pytest.param(4, 4, 64, 32, 70, [70], 96, -1, 0.0, id="partial-rotary-long-prompt"),
    pytest.param(6, 2, 128, 128, 7, [7, 3, 5], 16, -1, 0.0, id="ragged-prompt"),
    pytest.param(6, 2, 80, 80, 1, [9, 4, 70], 80, -1, 0.0, id="ragged-decode-odd-width"),
    pytest.param(4, 2, 32, 32, 1, [100], 128, 17, 0.0, id="window"),
    pytest.param(4, 2, 32, 32, 80, [80], 80, 33, 30.0, id="window-and-softcap"),
    pytest.param(48, 1, 16, 16, 3, [20], 32, -1, 0.0, id="many-heads-chunk"),
]


@pytest.mark.parametrize(
    ("heads", "kv", "dim", "rotated", "sequence", "lengths", "capacity", "window", "softcap"), CASES
)
def test_kernel_and_runtime_agree_with_float64(
    heads: int,
    kv: int,
    dim: int,
    rotated: int,
    sequence: int,
    lengths: list[int],
    capacity: int,
    window: int,
    softcap: float,
) -> None:
    given = feeds(len(lengths), sequence, heads, kv, dim, lengths=lengths, capacity=capacity, rotated=rotated)
    wanted = plain(given, heads, kv, window=window, softcap=softcap)
    real = np.isfinite(wanted)
    built = model(heads, kv, window=window, softcap=softcap)
    for own in (True, False):
        y, keys, values = session(built, own=own).run(None, given)
        np.testing.assert_allclose(y[real], wanted[real], rtol=0, atol=TOLERANCE, err_msg=f"own={own}")
        assert keys.shape == values.shape == given["past_key"].shape
    assert real.any()


def test_threads_do_not_change_a_bit() -> None:
    given = feeds(1, 1, 8, 4, 64, lengths=[200], capacity=256, rotated=64)
    built = model(8, 4)
    one, two = (session(built, own=True, threads=threads).run(None, given) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_cache_is_written_in_place() -> None:
    given = feeds(1, 1, 4, 2, 32, lengths=[3], capacity=8, rotated=32)
    opened = session(model(4, 2), own=True)
    fresh = opened.run(None, given)
    binding = opened.io_binding()
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in given.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for part in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{part}", values[f"past_{part}"])
    opened.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), fresh[0])
    np.testing.assert_array_equal(values["past_key"].numpy(), fresh[1])
    np.testing.assert_array_equal(values["past_value"].numpy(), fresh[2])
    untouched = np.delete(fresh[1], 2, axis=2)  # only position 2 is new
    np.testing.assert_array_equal(untouched, np.delete(given["past_key"], 2, axis=2))


def test_not_a_number_reaches_the_output_of_its_own_head() -> None:
    given = feeds(1, 1, 2, 2, 16, lengths=[70], capacity=80, rotated=16)
    given["past_key"][0, 1, 10, 3] = np.nan
    y = session(model(2, 2), own=True).run(None, given)[0].reshape(2, 16)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seqlens_k", np.asarray([40], np.int32), "capacity"),
        ("seqlens_k", np.asarray([-5], np.int32), "fewer positions"),
        ("seqlens_k", np.asarray([1, 2], np.int32), "batch"),
        ("past_value", np.zeros((1, 2, 8, 24), np.float32), "differ in shape"),
        ("past_key", np.zeros((1, 2, 9, 32), np.float32), "differ in shape"),
        ("qkv", np.zeros((1, 1, 31), np.float32), "wide"),
        ("cos", np.zeros((2, 16), np.float32), "differ in shape"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: Array, said: str) -> None:
    given = feeds(1, 1, 4, 2, 32, lengths=[3], capacity=8, rotated=32) | {name: value}
    with pytest.raises(Exception, match=said):
        session(model(4, 2), own=True).run(None, given)


def test_the_function_is_valid_onnx() -> None:
    onnx.checker.check_model(onnx.load_from_string(model(4, 2)), full_check=False)
