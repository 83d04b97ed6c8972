"""`tailcut inspect ANY`: what it is, per-layer facts, what engines would do, what to run next."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from tailcut.compress.engine_advice import engines_of, obeys_two_four
from tailcut.compress.examining import examine
from tailcut.compress.inspection import Inspection, MatrixFacts
from tailcut.compress.packing import pack
from tailcut.errors import InputError
from tailcut.onnx_files import sparse_tensor

TinyModel = Callable[..., Path]
Tailcut = Callable[..., tuple[int, str, str]]
GOLDEN = Path(__file__).parent / "importers" / "golden" / "compressed_tensors_0_14_0_1.zip"


def golden(folder: str, to: Path) -> Path:
    with zipfile.ZipFile(GOLDEN) as archive:
        for name in ("config.json", "model.safetensors", "expected.safetensors"):
            archive.extract(f"{folder}/{name}", to)
    (to / folder / "expected.safetensors").rename(to / f"{folder}.expected")
    return to / folder


def test_a_plain_directory_keeps_its_output(tiny_model: TinyModel, tmp_path: Path, tailcut: Tailcut) -> None:
    code, shown, _ = tailcut("inspect", tiny_model("llama"))
    assert code == 0
    for line in ("a dense Hugging Face directory", "block linears: 0.0000 zeros", "no manifest", "next: tailcut run"):
        assert line in shown
    code, shown, _ = tailcut("inspect", tiny_model("llama"), "--json")
    data = json.loads(shown)
    assert data["schema"] == "tailcut/Inspection"
    up = data["layers"]["model.layers.0.mlp.up_proj"]
    assert {"block", "shape", "zeros", "dense_bytes", "bitmask_bytes", "group"} <= up.keys()
    assert (up["bits"], up["stored_bytes"], up["kind"]) == (32, 64 * 32 * 4, "dense")
    pack(tiny_model("llama"), tmp_path / "packed")
    assert examine(tmp_path / "packed").format == "packed"


def test_a_24_bitmask_checkpoint(tmp_path: Path, tailcut: Tailcut) -> None:
    source = golden("two_four_f16", tmp_path)
    found = examine(source)
    assert found.what == "a compressed-tensors checkpoint (sparse-24-bitmask)"
    assert {layer.group for layer in found.layers.values()} == {"2:4"}
    up, want = found.layers["model.layers.0.mlp.up_proj"], load_file(tmp_path / "two_four_f16.expected")
    assert up.zeros == int(np.count_nonzero(want["model.layers.0.mlp.up_proj.weight"] == 0))
    assert (up.bits, up.kind, up.stored_bytes) == (16, "bitmask", 24 * 8 * 2 + 24 * 2 + 16)
    assert found.total_parameters == sum(array.size for array in want.values())
    assert found.engines["GPU 2:4"].startswith("7 of 7 matrices obey 2:4")
    code, shown, _ = tailcut("inspect", source)
    assert code == 0
    assert f"next: tailcut import {source} -o DIR" in shown


@pytest.mark.parametrize(
    ("folder", "bits", "kind"), [("two_four_fp8", 8, "bitmask"), ("packed_int4", 4, "packed integers")]
)
def test_checkpoints_with_integers(folder: str, bits: int, kind: str, tmp_path: Path) -> None:
    found = examine(golden(folder, tmp_path))
    assert {(layer.bits, layer.kind) for layer in found.layers.values()} == {(bits, kind)}
    assert found.sparsity > 0.49


def graph(path: Path, external: bool = False) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Two blocks: dense zeros and a sparse initializer, then QDQ and MatMulInteger; W [64, 32] with 75 % zeros."""
    rng = np.random.default_rng(0)
    w = np.where(rng.random((64, 32)) < 0.75, 0, rng.integers(1, 90, (64, 32))).astype(np.float32)
    made, stored = "model.layers.{}.mlp.{}.weight", numpy_helper.from_array
    nodes = [
        helper.make_node("MatMul", ["x", made.format(0, "up_proj")], ["a"]),
        helper.make_node("MatMul", ["x", made.format(0, "gate_proj")], ["b"]),
        helper.make_node("DequantizeLinear", ["layers.1.q", "s", "z"], ["w1"]),
        helper.make_node("MatMul", ["x", "w1"], ["c"]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "layers.1.i", "xz", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "s"], ["m"]),
        helper.make_node("Mul", ["f", "m"], ["d"]),
    ]
    constants = [
        stored(np.ascontiguousarray(w.T), made.format(0, "up_proj")),
        stored(np.ascontiguousarray(w.T.astype(np.int8)), "layers.1.q"),
        stored(np.ascontiguousarray(w.T.astype(np.int8)), "layers.1.i"),
        stored(np.float32(0.5), "s"),
        stored(np.int8(0), "z"),
    ]
    sparse = [sparse_tensor(made.format(0, "gate_proj"), np.ascontiguousarray(w.T))]
    body = helper.make_graph(nodes, "g", [], [], constants, sparse_initializer=sparse)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location="w.data", size_threshold=0)
    return w


@pytest.mark.parametrize("external", [False, True])
def test_an_onnx_file_of_others(external: bool, tmp_path: Path, tailcut: Tailcut) -> None:
    w = graph(tmp_path / "m.onnx", external)
    found = examine(tmp_path / "m.onnx")
    assert [layer.kind for layer in found.layers.values()] == ["dense", "coo", "QDQ", "MatMulInteger"]
    assert {layer.zeros for layer in found.layers.values()} == {int(np.count_nonzero(w == 0))}
    assert [layer.block for layer in found.layers.values()] == [0, 0, 1, 1]
    assert [layer.bits for layer in found.layers.values()] == [32, 32, 8, 8]
    values = int(np.count_nonzero(w))
    assert [layer.stored_bytes for layer in found.layers.values()] == [w.nbytes, 12 * values, w.size, w.size]
    assert "does not open sparse initializers" in found.engines["OpenVINO"]
    assert "slower than float32" in found.engines["DeepSparse"]
    assert any("opset 17" in note for note in found.notes)
    size = sum((tmp_path / name).stat().st_size for name in ("m.onnx", "w.data") if (tmp_path / name).is_file())
    assert found.bytes_on_disk == size
    code, shown, _ = tailcut("inspect", tmp_path / "m.onnx")
    assert code == 0
    assert "1 dense, 1 coo, 1 QDQ, 1 MatMulInteger" in shown


def test_our_package_by_its_directory_and_by_its_file(tiny_model: TinyModel, tmp_path: Path, tailcut: Tailcut) -> None:
    assert tailcut("export", tiny_model("gpt2"), "-o", tmp_path / "p", "--no-check")[0] == 0
    for path in (tmp_path / "p", tmp_path / "p" / "model.onnx"):
        code, shown, _ = tailcut("inspect", path)
        assert code == 0
        assert "every file has the size and sha256" in shown


def test_gguf_and_caches(tmp_path: Path, tailcut: Tailcut) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.3.ffn_up.weight", gguf.quantize(weight, kind), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    found = examine(tmp_path / "m.gguf")
    assert found.layers["blk.3.ffn_up"].bits == 8
    assert found.layers["blk.3.ffn_up"].kind == "Q8_0"
    assert found.layers["blk.3.ffn_up"].block == 3
    np.save(tmp_path / "alpha_peak.npy", np.linspace(1, 3, 21))
    code, shown, _ = tailcut("inspect", tmp_path / "alpha_peak.npy")
    assert code == 0
    assert "21 values from 1 to 3, mean 2" in shown
    assert "next: tailcut import" in shown


def test_what_others_quantised_is_named(tiny_model: TinyModel, tmp_path: Path, tailcut: Tailcut) -> None:
    made = tmp_path / "m"
    shutil.copytree(tiny_model("llama"), made)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    code, shown, _ = tailcut("inspect", made)
    assert code == 0
    assert "quantised by awq, which tailcut does not read" in shown


@pytest.mark.parametrize(
    "name", ["nothing", "text.txt", "pickle.pt", "rubbish.onnx", "rubbish.gguf", "rubbish.npy", "empty"]
)
def test_anything_else_is_a_sentence(name: str, tmp_path: Path, tailcut: Tailcut) -> None:
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif name != "nothing":
        path.write_bytes({"rubbish.gguf": b"GGUF", "rubbish.npy": b"\x93NUMPY"}.get(name, b"\x80\x04") + b"rubbish" * 9)
    code, shown, errors = tailcut("inspect", path)
    assert code == 2
    assert errors.splitlines()[-1].startswith("tailcut: ")
    assert "Traceback" not in shown + errors
    if name == "empty":
        assert "neither a model directory (no config.json, no .safetensors) nor a package" in errors
    with pytest.raises(InputError):
        examine(path)


def facts(group: str | None, sparsity: float = 0.5, kind: str = "dense", bits: int = 32) -> Inspection:
    layer = MatrixFacts(0, (32, 64), round(sparsity * 2048), 8192, 4096, group, bits, 8192, kind)
    return Inspection({"a": layer, "b": layer}, 5000, 9000)


def test_advice_follows_the_facts() -> None:
    for group, valid in (("2:4", True), ("1:4", True), ("2:8", True), ("4:8", False), ("3:4", False), (None, False)):
        assert obeys_two_four(facts(group).layers["a"]) is valid, group
        assert engines_of(facts(group))["GPU 2:4"].startswith("2 of 2" if valid else "no matrix")
    assert "0.0 MB of block weights a token instead of 0.0" in engines_of(facts(None, 0.7))["tailcut CPU"]
    assert "cut it first" in engines_of(facts(None, 0.01))["tailcut CPU"]
    assert "hardly faster" in engines_of(facts(None, 0.2))["tailcut CPU"]
    assert "finds the zeros itself" in engines_of(facts(None, 0.8))["DeepSparse"]
    assert "not here" in engines_of(facts(None, 0.3))["DeepSparse"]
    assert "sparse decompression" in engines_of(facts(None, 0.8, "MatMulInteger", 8))["OpenVINO"]
    assert "writes the zeros out at load" in engines_of(facts(None, 0.8, "coo"))["ONNX Runtime"]
    assert engines_of(Inspection({}, 0, 0)) == {}
