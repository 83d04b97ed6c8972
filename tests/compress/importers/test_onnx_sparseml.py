"""SparseML's kinds of ONNX files give back the model they came from; files that lie are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tailcut.checkpoint import Checkpoint, read_shard, write_shard
from tailcut.compress.adopting import bring, detect
from tailcut.compress.discovery import find_linears, read_weight
from tailcut.compress.importers import ImportOptions
from tailcut.compress.importers._onnx_graph import OnnxGraph
from tailcut.errors import InputError
from tailcut.manifest import verify
from tailcut.onnx_files import sparse_tensor
from tailcut.sidecar import open_sidecars

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]
Matrix = np.ndarray[Any, Any]
Parts = tuple[list[NodeProto], list[TensorProto], list[onnx.SparseTensorProto]]
KINDS = ("matmul", "gemm", "coo", "qdq", "qdq_rows", "fake", "static", "dynamic", "uint8", "qlinear", "one_node")
SCALE = np.float32(0.0123)


def tensor(name: str, array: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def rounded(weight: Matrix, scale: Any) -> Matrix:
    """W [out, in] -> q int8, zeros stay zeros."""
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)


def product(kind: str, key: str, name: str, weight: Matrix) -> Parts:  # noqa: PLR0911  (one of each kind)
    """Nodes and constants that multiply by W [out, in], its parts called `name`."""
    rows, row_scales = np.arange(1, len(weight) + 1, dtype=np.float32), np.full(len(weight), SCALE, np.float32)
    row_scales *= 1 + rows / len(weight)
    q, w, y = rounded(weight, SCALE), f"{name}.weight", [f"{key}_y"]
    match kind:
        case "matmul":
            return [helper.make_node("MatMul", ["x", w], y, name=key)], [tensor(w, weight.T)], []
        case "gemm":
            return [helper.make_node("Gemm", ["x", w], y, name=key, transB=1)], [tensor(w, weight)], []
        case "coo":
            return [helper.make_node("MatMul", ["x", w], y, name=key)], [], [sparse_tensor(w, weight.T)]
        case "qdq" | "qdq_rows":
            per_row = kind == "qdq_rows"
            scale = row_scales if per_row else SCALE
            stored = rounded(weight, scale[:, None]) if per_row else q
            zero = np.zeros(len(weight), np.int8) if per_row else np.int8(0)
            nodes = [
                helper.make_node("DequantizeLinear", [f"{w}_quantized", f"{w}.s", f"{w}.z"], [f"{key}_w"], axis=0),
                helper.make_node("Transpose", [f"{key}_w"], [f"{key}_t"], perm=[1, 0]),
                helper.make_node("MatMul", ["x", f"{key}_t"], y, name=key),
            ]
            return nodes, [tensor(f"{w}_quantized", stored), tensor(f"{w}.s", scale), tensor(f"{w}.z", zero)], []
        case "fake":
            nodes = [
                helper.make_node("QuantizeLinear", [w, f"{w}.s", f"{w}.z"], [f"{key}_q"]),
                helper.make_node("DequantizeLinear", [f"{key}_q", f"{w}.s", f"{w}.z"], [f"{key}_w"]),
                helper.make_node("Gemm", ["x", f"{key}_w"], y, name=key, transB=1),
            ]
            return nodes, [tensor(w, weight), tensor(f"{w}.s", SCALE), tensor(f"{w}.z", np.int8(0))], []
        case "qlinear":
            names = [f"{w}_quantized", f"{w}.s", f"{w}.z"]
            inputs = ["x", "x_scale", "x_zero", *names, "x_scale", "x_zero"]
            node = helper.make_node("QLinearMatMul", inputs, y, name=key)
            values = (q.T, SCALE, np.int8(0))
            return [node], [tensor(n, v) for n, v in zip(names, values, strict=True)], []
        case "one_node":
            inputs = ["x", f"{w}_quantized", f"{w}.s", f"{w}.z"]
            node = helper.make_node("DynamicQuantizeMatMul", inputs, y, name=key, domain="com.microsoft")
            shifted = (q.astype(np.int16) + 128).astype(np.uint8)
            values = (shifted.T, np.float32([SCALE]), np.uint8([128]))
            return [node], [tensor(n, v) for n, v in zip(inputs[1:], values, strict=True)], []
    return integer_product(kind, key, w, q)


def integer_product(kind: str, key: str, w: str, q: Matrix) -> Parts:
    """MatMulInteger with the input's scale fixed (SparseML) or found at run time (quantize_dynamic)."""
    stored, zero = (q.astype(np.int16) + 128).astype(np.uint8) if kind == "uint8" else q, 128 if kind == "uint8" else 0
    dynamic = kind != "static"
    first = (
        helper.make_node("DynamicQuantizeLinear", ["x"], [f"{key}_q", f"{key}_xs", f"{key}_xz"])
        if dynamic
        else helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], [f"{key}_q"])
    )
    factor, constants = f"{key}_factor", [tensor(f"{w}_quantized", stored.T), tensor(f"{w}.z", stored.dtype.type(zero))]
    if dynamic:
        scaling = [helper.make_node("Mul", [f"{key}_xs", f"{w}.s"], [factor])]
        constants.append(tensor(f"{w}.s", SCALE))
    else:
        scaling = []
        constants.append(tensor(factor, np.float32(0.05) * SCALE))
    nodes = [
        first,
        helper.make_node("MatMulInteger", [f"{key}_q", f"{w}_quantized", "x_zero", f"{w}.z"], [f"{key}_i"], name=key),
        *([] if dynamic else [helper.make_node("Add", [f"{key}_i", "int_bias"], [f"{key}_b"])]),
        helper.make_node("Cast", [f"{key}_i" if dynamic else f"{key}_b"], [f"{key}_f"], to=TensorProto.FLOAT),
        *scaling,
        helper.make_node("Mul", [f"{key}_f", factor], [f"{key}_y"]),
    ]
    return nodes, constants, []


def expected(kind: str, weight: Matrix) -> Matrix:
    if kind in ("matmul", "gemm", "coo"):
        return weight
    scale: Any = SCALE
    if kind == "qdq_rows":
        scale = (
            np.full(len(weight), SCALE, np.float32)
            * (1 + np.arange(1, len(weight) + 1, dtype=np.float32) / len(weight))
        )[:, None]
    return (rounded(weight, scale) * scale).astype(np.float32)


@pytest.fixture
def pruned(tiny_model: TinyModel, tmp_path: Path) -> Path:
    """A tiny Llama with 80 % zeros, plain names, two matrices of each pattern."""
    made = tmp_path / "pruned"
    shutil.copytree(tiny_model("llama"), made)
    tensors = {name: np.array(array) for name, array in read_shard(made / "model.safetensors").items()}
    for name, array in tensors.items():
        if ".layers." in name and array.ndim == 2:
            array[np.abs(array) < np.quantile(np.abs(array), 0.8)] = 0
    write_shard(made / "model.safetensors", tensors)
    return made


def write_onnx(
    path: Path, model: Path, kinds: Callable[[int], str], *, names: str = "kept", others: bool = True
) -> None:
    """The linears of a model as an ONNX file, kind by number; names "kept", only on "nodes", or "lost"."""
    checkpoint = Checkpoint(model)
    nodes, constants, sparse = [], [tensor("x_scale", np.float32(0.05)), tensor("x_zero", np.uint8(3))], []
    constants.append(tensor("int_bias", np.int32(4)))
    for number, linear in enumerate(find_linears(checkpoint)):
        weight = np.asarray(read_weight(checkpoint, linear), np.float32)
        name = linear.name if names == "kept" else f"onnx::MatMul_{number}"
        key = (
            f"/{linear.name.replace('.', '/')}/MatMul".replace("/layers/", "/layers.")
            if names == "nodes"
            else f"n{number}"
        )
        more = product(kinds(number), key, name, weight)
        nodes, constants, sparse = nodes + more[0], constants + more[1], sparse + more[2]
    linears = {linear.tensor for linear in find_linears(checkpoint)}
    if others:
        constants += [tensor(name, np.array(checkpoint.read(name))) for name in checkpoint.names if name not in linears]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None])],
        [],
        constants,
        sparse_initializer=sparse,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def config_only(model: Path, to: Path) -> Path:
    to.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model / name, to / name)
    return to


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_its_matrices_back(kind: str, pruned: Path, tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", pruned, lambda _: kind)
    assert detect(tmp_path / "m.onnx") == ("onnx-sparseml", "an ONNX file (m.onnx)")
    options = ImportOptions(config_only(pruned, tmp_path / "config"))
    bring(tmp_path / "m.onnx", tmp_path / "out", "onnx-sparseml", options)
    manifest, made = verify(tmp_path / "out"), Checkpoint(tmp_path / "out")
    before = Checkpoint(pruned)
    for linear in find_linears(before):
        want = expected(kind, np.asarray(before.read(linear.tensor)))
        got = np.asarray(made.read(linear.tensor))
        if kind == "static":  # the scale is a quotient of two float32
            np.testing.assert_allclose(got, want, rtol=3e-7)
        else:
            assert np.array_equal(got, want), linear.name
        assert manifest.layers[linear.name].sparsity >= 0.79
    assert np.array_equal(made.read("model.norm.weight"), before.read("model.norm.weight"))
    integers = kind not in ("matmul", "gemm", "coo")
    assert {layer.plan.bits for layer in manifest.layers.values()} == ({8} if integers else {None})
    sidecars = open_sidecars(tmp_path / "out", manifest)
    assert len(sidecars) == (21 if integers else 0)
    for name in sidecars:
        want = made.read(f"{name}.weight")
        np.testing.assert_allclose(sidecars.read(name).dense(), want, rtol=1e-6)


def test_an_int8_file_goes_on_to_a_package(pruned: Path, tmp_path: Path, tailcut: Tailcut) -> None:
    write_onnx(tmp_path / "m.onnx", pruned, lambda number: KINDS[number % len(KINDS)])
    config = config_only(pruned, tmp_path / "config")
    code, shown, errors = tailcut("import", tmp_path / "m.onnx", "--config", config, "-o", tmp_path / "out")
    assert code == 0, errors
    assert "keep their integers exactly" in shown
    code, _, errors = tailcut("export", tmp_path / "out", "-o", tmp_path / "p")
    assert code == 0, errors


@pytest.mark.parametrize("names", ["nodes", "lost"])
def test_matrices_are_recognised_without_names(names: str, pruned: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    """By the paths of nodes, and by the dense weights where every name is lost."""
    write_onnx(tmp_path / "model.onnx", pruned, lambda number: KINDS[number % 4], names=names, others=False)
    options = ImportOptions(tiny_model("llama"))
    bring(tmp_path, tmp_path / "out", "onnx-sparseml", options)
    before, made = Checkpoint(pruned), Checkpoint(tmp_path / "out")
    for number, linear in enumerate(find_linears(before)):
        want = expected(KINDS[number % 4], np.asarray(before.read(linear.tensor)))
        assert np.array_equal(made.read(linear.tensor), want), linear.name
    if names == "lost":
        config = config_only(pruned, tmp_path / "config")
        with pytest.raises(InputError, match="none of them recognised as"):
            bring(tmp_path / "model.onnx", tmp_path / "again", "onnx-sparseml", ImportOptions(config))


def test_what_the_graph_does_not_hold_is_named(pruned: Path, tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", pruned, lambda _: "matmul", others=False)
    with pytest.raises(InputError, match=r"no weight for model.embed_tokens.weight"):
        bring(
            tmp_path / "m.onnx", tmp_path / "out", "onnx-sparseml", ImportOptions(config_only(pruned, tmp_path / "c"))
        )
    with pytest.raises(InputError, match="with --config"):
        bring(tmp_path / "m.onnx", tmp_path / "out", "onnx-sparseml")
    assert not (tmp_path / "out").exists()


def external(path: Path, **entries: str) -> None:
    model = onnx.load(path)
    for item in model.graph.initializer:
        if item.name.endswith("up_proj.weight"):
            item.ClearField("raw_data")
            item.data_location = TensorProto.EXTERNAL
            for key, value in entries.items():
                item.external_data.add(key=key, value=value)
            break
    path.write_bytes(model.SerializeToString())


UP_BYTES = str(64 * 32 * 4)
ESCAPES = {
    "leaves its directory": {"location": "../secret.data", "offset": "0", "length": UP_BYTES},
    "leaves its directory ": {"location": "/etc/hostname", "offset": "0", "length": UP_BYTES},
    "cannot be opened": {"location": "missing.data", "offset": "0", "length": UP_BYTES},
    "the file has": {"location": "short.data", "offset": "0", "length": UP_BYTES},
    "needs 8192 bytes": {"location": "short.data", "offset": "0", "length": "999999999999"},
    "at offset -8": {"location": "short.data", "offset": "-8", "length": UP_BYTES},
    "no valid external offset": {"location": "short.data"},
}


@pytest.mark.parametrize("sentence", ESCAPES)
def test_external_data_stays_in_its_directory(sentence: str, pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.data").write_bytes(b"s" * int(UP_BYTES))
    (tmp_path / "in" / "short.data").write_bytes(b"s" * 100)
    write_onnx(tmp_path / "in" / "m.onnx", pruned, lambda _: "matmul")
    external(tmp_path / "in" / "m.onnx", **ESCAPES[sentence])
    with pytest.raises(InputError, match=sentence.strip()):
        bring(tmp_path / "in" / "m.onnx", tmp_path / "out", "onnx-sparseml", ImportOptions(pruned))
    assert not (tmp_path / "out").exists()


def edited(path: Path, edit: Callable[[Any], Any]) -> None:
    model = onnx.load(path)
    edit(model.graph)
    path.write_bytes(model.SerializeToString())


def named(graph: Any, ending: str) -> Any:
    return next(item for item in graph.initializer if item.name.endswith(ending))


HOSTILE: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "huge sizes": (
        "matmul",
        "is not the bytes it holds",
        lambda g: named(g, "up_proj.weight").dims.__setitem__(0, 1 << 50),
    ),
    "negative sizes": (
        "matmul",
        "is not the bytes it holds",
        lambda g: named(g, "up_proj.weight").dims.__setitem__(0, -32),
    ),
    "an unknown type": ("matmul", "cannot be read", lambda g: setattr(named(g, "up_proj.weight"), "data_type", 99)),
    "a huge sparse tensor": ("coo", "beyond the 2 GiB", lambda g: g.sparse_initializer[3].dims.__setitem__(0, 1 << 50)),
    "an infinite scale": (
        "qdq",
        "scale is not finite",
        lambda g: named(g, "weight.s").CopyFrom(tensor(named(g, "weight.s").name, np.float32(np.inf))),
    ),
    "scales of another size": (
        "qdq",
        "3 scales or zero points",
        lambda g: named(g, "weight.s").CopyFrom(tensor(named(g, "weight.s").name, np.ones(3, np.float32))),
    ),
    "a value made twice": ("matmul", "made by two nodes", lambda g: g.node.append(g.node[0])),
    "a scale that is nowhere": ("dynamic", "is not where SparseML", lambda g: g.node.remove(g.node[-1])),
    "NaN": (
        "matmul",
        "NaN or infinite",
        lambda g: named(g, "up_proj.weight").CopyFrom(
            tensor(named(g, "up_proj.weight").name, np.full((32, 64), np.nan, np.float32))
        ),
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_graphs_are_refused(what: str, pruned: Path, tmp_path: Path) -> None:
    kind, sentence, edit = HOSTILE[what]
    write_onnx(tmp_path / "m.onnx", pruned, lambda _: kind)
    edited(tmp_path / "m.onnx", edit)
    with pytest.raises(InputError, match=sentence):
        bring(
            tmp_path / "m.onnx", tmp_path / "out", "onnx-sparseml", ImportOptions(config_only(pruned, tmp_path / "c"))
        )
    assert not (tmp_path / "out").exists()


def test_cycles_end_and_rubbish_is_no_graph(tmp_path: Path, tailcut: Tailcut) -> None:
    nodes = [
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("MatMul", ["x", "a"], ["y"]),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [])), tmp_path / "cycle.onnx")
    assert list(OnnxGraph(tmp_path / "cycle.onnx").linears()) == []
    (tmp_path / "rubbish.onnx").write_bytes(b"\x80\x04pickle" * 99)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    code, _, errors = tailcut("import", tmp_path / "rubbish.onnx", "-o", tmp_path / "out")
    assert code == 2
    assert "not an ONNX file" in errors


def test_our_own_package_is_not_imported(tiny_model: TinyModel, tmp_path: Path, tailcut: Tailcut) -> None:
    assert tailcut("export", tiny_model("gpt2"), "-o", tmp_path / "p", "--no-check")[0] == 0
    for path in (tmp_path / "p", tmp_path / "p" / "model.onnx"):
        code, _, errors = tailcut("import", path, "-o", tmp_path / "m")
        assert code == 2
        assert "`tailcut convert` changes its layout" in errors


def test_the_formats_are_listed(tailcut: Tailcut) -> None:
    code, shown, _ = tailcut("import", "--list")
    assert code == 0
    for name in ("alphapruning-cache", "compressed-tensors", "gguf", "huggingface", "onnx-sparseml"):
        assert f"{name}  " in shown
