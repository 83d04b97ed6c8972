"""tailcut::GroupQueryAttention: the kernel against a plain float64 computation and against ONNX Runtime's own operator.

A float16 cache is checked in two steps: what is written is the exact number rounded (either way where float32 rotation
leaves it on the border), and what is computed is that of the numbers written. AVX-512 is tested natively where the processor has
it, and everywhere, in the slow run, as plain C++.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
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


def model(
    heads: int, kv: int, *, window: int = -1, softcap: float = 0.0, scale: float = 0.125, halves: bool = False
) -> bytes:
    cache = TensorProto.FLOAT16 if halves else TensorProto.FLOAT
    names = ["qkv", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos", "sin"]
    kinds = [TensorProto.FLOAT, cache, cache] + [TensorProto.INT32] * 2 + [TensorProto.FLOAT] * 2
    ranks = [3, 4, 4, 1, 0, 2, 2]
    inputs = [
        helper.make_tensor_value_info(n, kind, [None] * rank) for n, kind, rank in zip(names, kinds, ranks, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(n, kind, [None] * r)
        for n, kind, r in (("y", TensorProto.FLOAT, 3), ("present_key", cache, 4), ("present_value", cache, 4))
    ]
    attributes = {"num_heads": heads, "kv_num_heads": kv, "scale": scale, "local_window_size": window}
    node = helper.make_node(
        ATTENTION, names, [o.name for o in outputs], name="attention", domain=DOMAIN, softcap=softcap, **attributes
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    built = helper.make_model(
        graph, opset_imports=imports, ir_version=10, functions=[attention_function(21, halves=halves)]
    )
    return bytes(built.SerializeToString())


def session(model_bytes: bytes, kernels: Path | None, threads: int = 2) -> onnxruntime.InferenceSession:
    """kernels: the library whose operator runs; None: ONNX Runtime's own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if kernels is not None:
        options.register_custom_ops_library(str(kernels))
    return onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])


def feeds(
    batch: int,
    sequence: int,
    heads: int,
    kv: int,
    dim: int,
    *,
    lengths: list[int],
    capacity: int,
    rotated: int,
    halves: bool = False,
) -> dict[str, Array]:
    """lengths: valid tokens of each row after this run."""
    rng = np.random.default_rng(5)
    angles = np.arange(capacity + 8)[:, None] * (10000.0 ** (-np.arange(rotated // 2) / max(1, rotated // 2)))[None]
    cache = (batch, kv, capacity, dim)
    return {
        "qkv": rng.standard_normal((batch, sequence, (heads + 2 * kv) * dim)).astype(np.float32),
        "past_key": rng.standard_normal(cache).astype(np.float16 if halves else np.float32),
        "past_value": rng.standard_normal(cache).astype(np.float16 if halves else np.float32),
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


def stored(given: dict[str, Array], heads: int, kv: int) -> tuple[Array, Array]:
    """float64 keys and values after the run."""
    batch, sequence, _ = given["qkv"].shape
    qkv = given["qkv"].astype(np.float64).reshape(batch, sequence, heads + 2 * kv, -1)
    keys, values = (given[name].astype(np.float64) for name in ("past_key", "past_value"))
    first = int(given["total_sequence_length"]) == sequence
    for b in range(batch):
        past = 0 if first else int(given["seqlens_k"][b]) + 1 - sequence
        for s in range(min(sequence, int(given["seqlens_k"][b]) + 1 - past)):
            keys[b, :, past + s] = turned(qkv[b, s, heads : heads + kv], past + s, given)
            values[b, :, past + s] = qkv[b, s, heads + kv :]
    return keys, values


def plain(
    given: dict[str, Array],
    heads: int,
    kv: int,
    *,
    window: int = -1,
    softcap: float = 0.0,
    scale: float = 0.125,
    cache: tuple[Array, Array] | None = None,
) -> Array:
    """float64 outputs [batch, sequence, heads * dim]; rows of padding are left at NaN. cache: as it is after the run."""
    batch, sequence, _ = given["qkv"].shape
    dim = given["past_key"].shape[3]
    qkv = given["qkv"].astype(np.float64).reshape(batch, sequence, heads + 2 * kv, dim)
    keys, values = (part.astype(np.float64) for part in cache or stored(given, heads, kv))
    first = int(given["total_sequence_length"]) == sequence
    y = np.full((batch, sequence, heads, dim), np.nan)
    for b in range(batch):
        past = 0 if first else int(given["seqlens_k"][b]) + 1 - sequence
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
    pytest.param(200, 1, 16, 16, 1, [140], 150, -1, 0.0, id="more-heads-than-go-together"),
    pytest.param(6, 2, 32, 32, 1, [300, 7, 129, 128], 320, -1, 0.0, id="ragged-decode-in-chunks"),
    pytest.param(4, 1, 32, 32, 1, [900, 150], 1000, 301, 25.0, id="chunks-window-softcap"),
    pytest.param(4, 2, 16, 16, 1, [8321], 8330, -1, 0.0, id="more-than-64-chunks"),
    pytest.param(3, 1, 256, 256, 1, [77], 80, -1, 0.0, id="wide-heads-short-blocks"),
    pytest.param(2, 1, 512, 64, 20, [20], 24, 9, 0.0, id="widest-heads-prompt-window"),
    pytest.param(6, 2, 40, 32, 1, [150, 20], 160, -1, 0.0, id="decode-half-a-vector-more"),
    pytest.param(6, 2, 40, 32, 19, [19, 4], 160, -1, 0.0, id="prompt-half-a-vector-more"),
    pytest.param(3, 1, 8, 8, 1, [37], 40, -1, 0.0, id="half-a-vector"),
    pytest.param(4, 2, 200, 64, 3, [83], 90, 27, 0.0, id="every-width-of-sums-window"),
]
ISAS = (*library.ISAS, pytest.param("avx512 emulated", marks=pytest.mark.slow))


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A library whose sessions, made in this test, use one instruction set."""
    name, _, emulated = request.param.partition(" ")
    isa: library.Isa = name
    path = request.getfixturevalue("emulated_library") if emulated else library.require()
    if isa not in library.isas(path):
        pytest.skip(f"this processor has no {isa}")
    library.force(isa, path=path)
    yield path
    library.force(path=path)


@pytest.mark.parametrize("halves", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("heads", "kv", "dim", "rotated", "sequence", "lengths", "capacity", "window", "softcap"), CASES
)
def test_kernel_and_runtime_agree_with_float64(
    kernels: Path,
    heads: int,
    kv: int,
    dim: int,
    rotated: int,
    sequence: int,
    lengths: list[int],
    capacity: int,
    window: int,
    softcap: float,
    halves: bool,
) -> None:
    sizes: dict[str, Any] = {"lengths": lengths, "capacity": capacity, "rotated": rotated, "halves": halves}
    given = feeds(len(lengths), sequence, heads, kv, dim, **sizes)
    wanted = plain(given, heads, kv, window=window, softcap=softcap)
    real = np.isfinite(wanted)
    built = model(heads, kv, window=window, softcap=softcap, halves=halves)
    for own in (kernels, None) if dim % 16 == 0 else (kernels,):  # the runtime's wants multiples of 16
        y, keys, values = session(built, own).run(None, given)
        expected = wanted
        if own and halves:  # the body attends to new keys and values before it rounds them
            cache = rounded(given, heads, kv, keys, values)
            expected = plain(given, heads, kv, window=window, softcap=softcap, cache=cache)
        np.testing.assert_allclose(y[real], expected[real], rtol=0, atol=TOLERANCE, err_msg=f"own={own}")
        assert keys.shape == values.shape == given["past_key"].shape
    assert real.any()


def rounded(given: dict[str, Array], heads: int, kv: int, keys: Array, values: Array) -> tuple[Array, Array]:
    """The cache after a run, which holds the exact numbers to half a unit of float16 (and a bit of float32)."""
    batch, sequence, _ = given["qkv"].shape
    for found, exact in zip((keys, values), stored(given, heads, kv), strict=True):
        assert found.dtype == np.float16
        unit = np.maximum(2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 10), 2.0**-24)
        first = int(given["total_sequence_length"]) == sequence
        for b in range(batch):
            count = sequence if first else int(given["seqlens_k"][b]) + 1
            valid = np.s_[b, :, : min(count, int(given["seqlens_k"][b]) + 1)]
            assert (np.abs(found[valid].astype(np.float64) - exact[valid]) <= 0.5001 * unit[valid] + 1e-6).all()
    return keys, values


@pytest.mark.parametrize("emulated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_each_instruction_set_runs_loops_of_its_own(emulated: bool, request: pytest.FixtureRequest) -> None:
    """They add in different orders, which shows in the last bits; AMX has no loops but those of AVX-512."""
    path = request.getfixturevalue("emulated_library") if emulated else library.require()
    given, found = feeds(1, 1, 8, 4, 64, lengths=[700], capacity=704, rotated=64), {}
    for isa in library.ISAS:
        if isa not in library.isas(path):
            continue
        library.force(isa, path=path)
        found[isa] = session(model(8, 4), path).run(None, given)[0].tobytes()
    library.force(path=path)
    for one, other in combinations(found, 2):
        assert (found[one] == found[other]) == ({one, other} == {"avx512", "amx"}), (one, other)


def test_exponentials_of_every_size(kernels: Path) -> None:
    """A row a score: one position at -score with value exp(score), one at 0 with value 0."""
    score = np.append(np.linspace(0, 87.2, 1000, dtype=np.float32), np.asarray([105, 1e4, 3e38], np.float32))
    rows = len(score)
    given = feeds(rows, 1, 1, 1, 8, lengths=[2] * rows, capacity=2, rotated=0)
    given["qkv"][:] = np.eye(24)[0]  # the query reads channel 0; the new key and value are zeros
    given["past_key"][:, 0, 0] = -score[:, None]
    given["past_value"][:, 0, 0] = np.exp(np.minimum(score, 87))[:, None]
    y = session(model(1, 1, scale=1.0), kernels).run(None, given)[0][:, 0]
    weight = np.exp(-score.astype(np.float64))
    wanted = (weight * np.exp(np.minimum(score, 87)).astype(np.float64) / (1 + weight))[:, None]
    wanted[-3:] = 0  # below the least float32
    np.testing.assert_allclose(y, np.broadcast_to(wanted, y.shape), rtol=6e-7)  # exp within 2 ulp, three roundings more


def test_every_float16_is_read_exactly(kernels: Path) -> None:
    """A query of zeros weighs two cached positions alike, and the second value is 0: the output is half the first."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(128, 1, 1, 512)
    cache = np.concatenate([every, np.zeros_like(every)], axis=2)
    given = feeds(128, 1, 1, 1, 512, lengths=[2] * 128, capacity=2, rotated=0, halves=True)
    given |= {"qkv": np.zeros((128, 1, 3 * 512), np.float32), "past_key": np.zeros_like(cache), "past_value": cache}
    y = session(model(1, 1, halves=True), kernels).run(None, given)[0]
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(y.ravel(), every.astype(np.float32).ravel() * np.float32(0.5))


def test_values_are_rounded_to_nearest_even(kernels: Path) -> None:
    """Bit for bit numpy's rounding: every float16 and its neighbours, the middles and what lies beside them."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2  # exact in float32
    edges = np.float32([65519.996, 65520, 1e30, np.inf, np.nan, 1e-45, 2**-25, 2**-25 * 1.001])
    near = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    x = np.concatenate([halves, middles, *near, edges])
    x = np.concatenate([x, -x])
    x = np.pad(x, (0, -x.size % 512)).reshape(1, -1, 512)  # [1, sequence, dim]
    given = feeds(1, x.shape[1], 1, 1, 512, lengths=[x.shape[1]], capacity=x.shape[1], rotated=0, halves=True)
    given["qkv"] = np.concatenate([np.zeros_like(x), x, x], axis=2)
    _, keys, values = session(model(1, 1, halves=True), kernels).run(None, given)
    with np.errstate(over="ignore"):
        wanted = x[0].astype(np.float16)
    for found in (keys, values):
        np.testing.assert_array_equal(found[0, 0], wanted)
        signs = np.signbit(found[0, 0]) == np.signbit(wanted)
        assert signs[~np.isnan(wanted)].all()


@pytest.mark.parametrize("halves", [False, True])
def test_a_row_does_not_depend_on_its_batch(kernels: Path, halves: bool) -> None:
    """Rows of 1, 2 and 3 chunks: what each gives alone, bit for bit."""
    given = feeds(3, 1, 6, 2, 32, lengths=[300, 9, 200], capacity=320, rotated=32, halves=halves)
    opened = session(model(6, 2, halves=halves), kernels)
    together = opened.run(None, given)[0]
    for row, length in enumerate((300, 9, 200)):
        names = ("qkv", "past_key", "past_value", "seqlens_k")
        alone = given | {name: given[name][row : row + 1] for name in names}
        alone["total_sequence_length"] = np.asarray(length, np.int32)
        np.testing.assert_array_equal(opened.run(None, alone)[0][0], together[row])


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("sequence", "length"), [(1, 700), (40, 40)])
def test_threads_do_not_change_a_bit(kernels: Path, halves: bool, sequence: int, length: int) -> None:
    given = feeds(1, sequence, 8, 4, 64, lengths=[length], capacity=704, rotated=64, halves=halves)
    built = model(8, 4, halves=halves)
    alone, *others = (session(built, kernels, threads).run(None, given) for threads in (1, 2, 3))
    for found in others:
        for a, b in zip(alone, found, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("halves", [False, True])
def test_the_cache_is_written_in_place(kernels: Path, halves: bool) -> None:
    given = feeds(1, 1, 4, 2, 32, lengths=[3], capacity=8, rotated=32, halves=halves)
    opened = session(model(4, 2, halves=halves), kernels)
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


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("length", [70, 300])
def test_not_a_number_reaches_the_output_of_its_own_head(kernels: Path, halves: bool, length: int) -> None:
    given = feeds(1, 1, 2, 2, 16, lengths=[length], capacity=320, rotated=16, halves=halves)
    given["past_key"][0, 1, 10, 3] = np.nan
    y = session(model(2, 2, halves=halves), kernels).run(None, given)[0].reshape(2, 16)
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
        session(model(4, 2), library.require()).run(None, given)


def test_the_function_is_valid_onnx() -> None:
    for halves in (False, True):
        onnx.checker.check_model(onnx.load_from_string(model(4, 2, halves=halves)), full_check=False)
