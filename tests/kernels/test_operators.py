"""The operators inside ONNX Runtime: they take over from the function bodies, and bad weights are an error, not a crash."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tailcut.bitmask import pack
from tailcut.export.functions import functions_for
from tailcut.kernels import library
from tailcut.kernels.session import ORT_ERRORS, session_options
from tailcut.quantised import dequantise, groups, pack_nibbles, spread

OUT, IN = 130, 300  # neither a multiple of a tile, a block or a group
OPSET = 21
Parts = dict[str, Any]
Array = np.ndarray[Any, Any]
Matrix = tuple[str, Parts, Array]  # operator, its inputs, the weights they stand for


def weights(density: float = 0.3) -> Array:
    rng = np.random.default_rng(1)
    keep = rng.random((OUT, IN)) < density
    return np.where(keep, rng.standard_normal((OUT, IN)), 0).astype(np.float32)


def integers(largest: int, scales: Array) -> Array:
    return np.clip(np.rint(weights() / spread(scales, IN)), -largest, largest).astype(np.int8)


def matrices() -> dict[str, Matrix]:
    shape = np.array([OUT, IN], np.int64)
    found: dict[str, Matrix] = {}
    for name, kind in (("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        stored = pack(weights().astype(kind))
        parts = {"values": stored.values, "mask": stored.mask, "shape": shape}
        found[f"sparse {name}"] = "SparseMatMul", parts, weights().astype(kind).astype(np.float32)
    rows = (np.abs(weights()).max(axis=1) / 127).astype(np.float32)
    q = integers(127, rows)
    stored = pack(q)
    sparse8 = {"values": stored.values, "mask": stored.mask, "scales": rows, "shape": shape}
    found["sparse int8"] = "SparseMatMulInt8", sparse8, dequantise(q, rows)
    found["dense int8"] = "MatMulInt8", {"weight": q, "scales": rows}, dequantise(q, rows)
    by_group = np.full((OUT, groups(IN)), 0.4, np.float32)
    q = integers(7, by_group)
    stored = pack(q)
    sparse4 = {"values": pack_nibbles(stored.values), "mask": stored.mask, "scales": by_group, "shape": shape}
    found["sparse int4"] = "SparseMatMulInt4", sparse4, dequantise(q, by_group)
    dense4 = {"weight": pack_nibbles(q), "scales": by_group, "shape": shape}
    found["dense int4"] = "MatMulInt4", dense4, dequantise(q, by_group)
    return found


MATRICES = matrices()


def model(kind: str, parts: Parts, *, as_inputs: tuple[str, ...] = (), x_type: int = TensorProto.FLOAT) -> bytes:
    """One node; `as_inputs` names parts that are inputs of the graph instead of constants."""
    node = helper.make_node(kind, ["x", *parts], ["y"], domain="tailcut", name="layer.7")
    given = [helper.make_tensor_value_info("x", x_type, None)] + [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(parts[name].dtype), parts[name].shape)
        for name in as_inputs
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in parts.items() if name not in as_inputs]
    y = [helper.make_tensor_value_info("y", x_type, None)]
    graph = helper.make_graph([node], "g", given, y, constants)
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("tailcut", 1)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions_for([node], OPSET))
    return bytes(made.SerializeToString())


def open_model(graph: bytes, *, kernels: bool = True, threads: int = 2) -> onnxruntime.InferenceSession:
    options = session_options(threads=threads)
    if kernels:
        options.register_custom_ops_library(str(library.require()))
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def rows(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, IN), np.float32)


def test_the_library_is_there_where_a_compiler_is() -> None:
    """Or every test of this folder that needs it would fail for another reason."""
    assert library.problem() is None


@pytest.mark.parametrize("name", MATRICES)
def test_kernel_takes_over_from_the_function(name: str) -> None:
    kind, parts, dense = MATRICES[name]
    x = rows(6).reshape(2, 3, IN)
    want = x.astype(np.float64) @ dense.astype(np.float64).T
    before = library.counters()
    plain = open_model(model(kind, parts), kernels=False).run(None, {"x": x})[0]
    assert library.counters() == before
    own = open_model(model(kind, parts)).run(None, {"x": x})[0]
    assert sum(library.counters().values()) == sum(before.values()) + 1
    assert own.shape == plain.shape == want.shape
    # float32: 300 terms in another order; integers: activations rounded to 8 bits by groups of 128, 0.7 % measured
    limit = 2e-2 if "int" in name else 1e-6
    assert np.linalg.norm(plain - want) <= 1e-6 * np.linalg.norm(want)
    assert np.linalg.norm(own - want) <= limit * np.linalg.norm(want)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("shape", [(IN,), (1, IN), (0, IN), (3, 0, IN), (2, 2, 2, 2, IN), (33, IN)])
def test_any_rank_and_no_rows(name: str, shape: tuple[int, ...]) -> None:
    kind, parts, _ = MATRICES[name]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    session = open_model(model(kind, parts))
    y = session.run(None, {"x": x})[0]
    assert y.shape == (*shape[:-1], OUT)
    each = [session.run(None, {"x": row[None]})[0][0] for row in x.reshape(-1, IN)]
    # one row and many rows may be summed in different orders
    np.testing.assert_allclose(y.reshape(-1, OUT), np.reshape(each, (-1, OUT)), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MATRICES)
def test_threads_do_not_change_a_bit(name: str) -> None:
    kind, parts, _ = MATRICES[name]
    for count in (1, 5, 40):
        found = [open_model(model(kind, parts), threads=n).run(None, {"x": rows(count)})[0] for n in (1, 2, 3)]
        for other in found[1:]:
            np.testing.assert_array_equal(found[0], other)


@pytest.mark.parametrize("name", [name for name in MATRICES if "bfloat16" not in name])  # numpy cannot feed those
def test_weights_that_are_computed_at_run_time(name: str) -> None:
    kind, parts, _ = MATRICES[name]
    first = next(iter(parts))
    constant = open_model(model(kind, parts)).run(None, {"x": rows(2)})[0]
    given = open_model(model(kind, parts, as_inputs=(first,))).run(None, {"x": rows(2), first: parts[first]})[0]
    np.testing.assert_array_equal(constant, given)


def test_many_runs_at_once_and_many_sessions() -> None:
    """Scratch memory is shared by all sessions: no run may see another's."""
    sessions = [open_model(model(kind, parts)) for kind, parts, _ in MATRICES.values()]
    inputs = [rows(count, seed) for seed, count in enumerate((1, 7, 20, 64) * 4)]
    jobs = [(session, x) for session in sessions for x in inputs]
    want = [session.run(None, {"x": x})[0] for session, x in jobs]
    with ThreadPoolExecutor(8) as pool:
        for got, alone in zip(pool.map(lambda job: job[0].run(None, {"x": job[1]})[0], jobs), want, strict=True):
            np.testing.assert_array_equal(got, alone)


def test_packed_memory_is_given_back_with_the_session() -> None:
    before = library.packed_bytes()
    session = open_model(model(*MATRICES["sparse int8"][:2]))
    assert library.packed_bytes() > before
    del session
    assert library.packed_bytes() == before


def changed(name: str, part: str, change: Callable[[Array], Array]) -> tuple[str, Parts]:
    kind, parts, _ = MATRICES[name]
    return kind, {**parts, part: change(parts[part])}


BAD = [
    ("sparse float32", "values", lambda a: a[:-1], r"mask names \d+ weights, \d+ values are stored"),
    ("sparse float32", "values", lambda a: a.reshape(1, -1), "one dimension is needed"),
    ("sparse float32", "values", lambda a: a.astype(np.float64), "must be float32, float16 or bfloat16"),
    ("sparse float32", "values", lambda a: a.astype(np.int8), "must be float32, float16 or bfloat16"),
    ("sparse float32", "mask", lambda a: a | 0x80, "bits beyond column 300|mask names"),
    ("sparse float32", "mask", lambda a: a[:-1], r"mask has shape \[129, 38\]"),
    ("sparse float32", "mask", lambda a: a.reshape(-1), "mask has shape"),
    ("sparse float32", "shape", lambda a: a[:1], "two numbers are needed"),
    ("sparse float32", "shape", lambda a: -a, "which is no matrix"),
    ("sparse float32", "shape", lambda a: a * (1 << 50), "which is no matrix"),
    ("sparse float32", "shape", lambda a: a[::-1].copy(), "mask has shape"),
    ("sparse int8", "scales", lambda a: a[:-1], "scales has 129"),
    ("sparse int8", "scales", lambda a: a[None], "one dimension is needed"),
    ("sparse int4", "scales", lambda a: a[:, :-1].copy(), r"scales has shape \[130, 2\]"),
    ("sparse int4", "values", lambda a: a[:-1], "value bytes"),
    ("dense int8", "weight", lambda a: a.reshape(-1), "two dimensions are needed"),
    ("dense int8", "scales", lambda a: a[1:], "scales has 129"),
    ("dense int4", "weight", lambda a: a[:, 1:].copy(), "weight has shape"),
    ("dense int4", "scales", lambda a: a[1:], "scales has shape"),
]


@pytest.mark.parametrize(("name", "part", "change", "sentence"), BAD)
def test_bad_weights_are_one_sentence(name: str, part: str, change: Callable[[Array], Array], sentence: str) -> None:
    kind, parts = changed(name, part, change)
    with pytest.raises(ORT_ERRORS, match=rf"tailcut::{kind} layer.7: .*({sentence})"):
        open_model(model(kind, parts))


@pytest.mark.parametrize(("name", "part", "change", "sentence"), BAD[:1] + BAD[7:10])
def test_bad_weights_at_run_time(name: str, part: str, change: Callable[[Array], Array], sentence: str) -> None:
    kind, parts = changed(name, part, change)
    session = open_model(model(kind, parts, as_inputs=(part,)))
    with pytest.raises((RuntimeError, *ORT_ERRORS), match=sentence):
        session.run(None, {"x": rows(1), part: parts[part]})


def test_x_must_fit() -> None:
    kind, parts, _ = MATRICES["sparse float32"]
    session = open_model(model(kind, parts))
    for x in (np.zeros((2, IN + 1), np.float32), np.zeros((2, 0), np.float32), np.zeros((), np.float32)):
        with pytest.raises(ORT_ERRORS, match=r"x ends in \d+ columns, W has 300"):
            session.run(None, {"x": x})
    with pytest.raises(ORT_ERRORS):
        open_model(model(kind, parts, x_type=TensorProto.FLOAT16))


def test_swiglu() -> None:
    node = helper.make_node("SwiGLU", ["x"], ["y"], domain="tailcut")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("tailcut", 1)]
    made = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions_for([node], OPSET))
    own, plain = (open_model(made.SerializeToString(), kernels=kernels) for kernels in (True, False))
    for shape in ((2, 3, 20), (40, 4098), (0, 8), (4,)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 4
        gate, up = np.split(x.astype(np.float64), 2, axis=-1)
        want = gate / (1 + np.exp(-gate)) * up
        # 4 units in the last place; ONNX Runtime's sigmoid is a polynomial that is off by some 1e-6 where it is small
        np.testing.assert_allclose(own.run(None, {"x": x})[0], want, rtol=5e-7, atol=1e-38)
        np.testing.assert_allclose(plain.run(None, {"x": x})[0], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ORT_ERRORS, match="even number of columns"):
        own.run(None, {"x": np.zeros((2, 3), np.float32)})


def test_forced_instruction_sets_and_formats() -> None:
    kind, parts, dense = MATRICES["sparse float32"]
    want = rows(3) @ dense.T
    for isa in library.isas():
        for form in ("dense", "bitmask"):
            library.force(isa, form)
            try:
                before = library.counters().get(f"f32 {form} {isa}", 0)
                got = open_model(model(kind, parts)).run(None, {"x": rows(3)})[0]
                assert library.counters()[f"f32 {form} {isa}"] == before + 1
            finally:
                library.force()
            np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_a_runtime_that_is_too_old_gets_a_sentence() -> None:
    """A stand-in for ONNX Runtime 1.16: its interface has the first entries only and knows no version 17."""
    create = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)
    said: list[bytes] = []
    make_status = create(lambda code, text: len(said.append(text) or said))
    table = (ctypes.c_void_p * 3)(ctypes.cast(make_status, ctypes.c_void_p), None, None)
    get = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version == 1 else 0
    )
    text = ctypes.create_string_buffer(b"1.16.3")
    version = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: ctypes.addressof(text))
    base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p), ctypes.cast(version, ctypes.c_void_p))
    register = ctypes.CDLL(str(library.require())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, ctypes.byref(base)) == 1
    assert b"need ONNX Runtime 1.17 or newer" in said[0]
    assert b"this is 1.16.3" in said[0]


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
def test_the_mapped_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    """64 MB of weights in a file of their own: after loading, they are in memory once, packed."""
    side = 8192
    weight = np.random.default_rng(0).integers(1, 127, (side, side), np.int8)
    parts = {"weight": weight, "scales": np.ones(side, np.float32)}
    made = onnx.load_from_string(model("MatMulInt8", parts))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    code = (
        "import re, onnxruntime as o; from tailcut.kernels import library\n"
        "def of_files(): return int(re.search(r'RssFile:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10\n"
        "p = o.SessionOptions(); p.register_custom_ops_library(str(library.require())); before = of_files()\n"
        f"s = o.InferenceSession({str(tmp_path / 'm.onnx')!r}, p, providers=['CPUExecutionProvider'])\n"
        "print(of_files() - before, library.packed_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    kept, packed = (int(word) for word in done.stdout.split())
    assert packed >= side * side
    assert kept < side * side // 4  # the runtime's own code that loading touched (8 MB), and pages at the ends
