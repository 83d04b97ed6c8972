"""Packages with rounded weights: torch at the same weights agrees, sizes are what they should be, errors are recorded."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tailcut.checkpoint import Checkpoint
from tailcut.errors import InputError
from tailcut.export.layouts import Storage, joined_name, storage
from tailcut.export.quantise import round_trip
from tailcut.export.run import export
from tailcut.kernels.package import open_package
from tailcut.kernels.stored import module_names, stored_matrices

Model = Callable[..., Path]


@pytest.mark.parametrize("weights", ["bfloat16", "int4"])
def test_every_family_agrees_with_torch_at_the_stored_weights(
    family: str, weights: Any, sparse_model: Model, tmp_path: Path
) -> None:
    manifest = export(sparse_model(family), tmp_path / "p", weights=weights)
    assert manifest.details["precision"] == weights
    assert manifest.details["parity_top1_agreement"] == 1.0
    assert manifest.sparsity >= 0.7 - 0.01  # rounding cuts a few more
    assert all(layer.error > 0 for layer in manifest.layers.values())


@pytest.mark.parametrize("weights", ["float32", "float16", "int8"])
@pytest.mark.parametrize("head", [None, "int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_head_agrees_with_torch(tied: bool, head: Any, weights: Any, sparse_model: Model, tmp_path: Path) -> None:
    model = sparse_model("llama", tie_word_embeddings=tied, head_dim=16, hidden_size=36)
    manifest = export(model, tmp_path / "p", weights=weights, head=head)
    facts = manifest.details
    assert facts["head_precision"] == (head or ("int8" if weights == "int4" else weights))
    assert 0 < float(facts["head_share"] or 0) < 1


@pytest.mark.parametrize("width", [35, 260])  # half a byte is left over; two groups and four columns
def test_int4_tables_of_odd_width(width: int, sparse_model: Model, tmp_path: Path) -> None:
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 16}
    model = sparse_model("llama", hidden_size=width, tie_word_embeddings=True, **heads)
    assert export(model, tmp_path / "p", weights="int4", head="int4").details["parity_top1_agreement"] == 1.0


def test_tied_tables_are_stored_once(sparse_model: Model, tmp_path: Path) -> None:
    for head in ("float32", "int8", "int4"):
        export(sparse_model("llama", tie_word_embeddings=True), tmp_path / head, head=head, check=False)  # type: ignore[arg-type]
        model = onnx.load(tmp_path / head / "model.onnx", load_external_data=False)
        rows = [tensor.name for tensor in model.graph.initializer if list(tensor.dims[:1]) == [258]]
        assert {name.removesuffix(".scales") for name in rows} == {"model.embed_tokens.weight"}


def test_stored_matrices_are_the_rounded_ones(sparse_model: Model, tmp_path: Path) -> None:
    for weights in ("float32", "int8", "int4"):
        directory = sparse_model("llama")
        manifest = export(directory, tmp_path / weights, weights=weights, check=False)  # type: ignore[arg-type]
        checkpoint = Checkpoint(directory)
        for matrix in stored_matrices(open_package(tmp_path / weights)):
            parts = [checkpoint.read(f"{module}.weight") for module in module_names(matrix.name)]
            want = np.concatenate([round_trip(np.asarray(part, np.float32), weights) for part in parts])  # type: ignore[arg-type]
            if matrix.name == "lm_head" and weights == "int4":
                want = round_trip(np.asarray(parts[0], np.float32), "int8")
            assert np.array_equal(matrix.dense(), want)
        for name, layer in manifest.layers.items():
            source = np.asarray(checkpoint.read(f"{name}.weight"), np.float32)
            stored = round_trip(source, weights)  # type: ignore[arg-type]
            assert layer.zeros == source.size - np.count_nonzero(stored)
            want_error = np.linalg.norm(stored - source) / np.linalg.norm(source)
            assert layer.error == pytest.approx(want_error, rel=1e-4)  # float32 norms against float64 ones


@pytest.fixture(scope="session")
def wide(sparse_model: Model) -> dict[float, Path]:
    """One block with matrices of realistic width, so that padding to pages does not count."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 1, "head_dim": 64}
    return {sparsity: sparse_model("llama", sparsity, **sizes) for sparsity in (0.5, 0.8)}


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
@pytest.mark.parametrize(
    ("weights", "bits", "scale_bits"),
    # int4 has a float32 scale for each 128 columns, a quarter of a bit a weight; int8's are counted in the 2 %
    [("float32", 32, 0.0), ("float16", 16, 0.0), ("bfloat16", 16, 0.0), ("int8", 8, 0.0), ("int4", 4, 32 / 128)],
)
def test_sparse_linears_take_mask_and_values(
    weights: Any, bits: int, scale_bits: float, sparsity: float, wide: dict[float, Path], tmp_path: Path
) -> None:
    manifest = export(wide[sparsity], tmp_path / "p", weights=weights, check=False)
    density = 1 - manifest.sparsity  # of what is stored: rounding to int4 cuts more
    model = onnx.load(tmp_path / "p" / "model.onnx", load_external_data=False)
    inside = [t for t in model.graph.initializer if t.external_data and ".layers." in t.name and "_proj" in t.name]
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in inside]
    stored = sum(-(-int(entry["length"]) // 4096) * 4096 for entry in entries)  # whole pages, as in the file
    found = 8 * stored / manifest.prunable_parameters
    assert found == pytest.approx(1 + density * bits + scale_bits, rel=0.02)
    assert manifest.details["linear_bits_per_weight"] == pytest.approx(found, rel=0.01)


def test_a_dense_model_keeps_whole_matrices(tiny_model: Model, tmp_path: Path) -> None:
    for weights, kind in (("int8", "MatMulInt8"), ("int4", "MatMulInt4")):
        export(tiny_model("llama"), tmp_path / weights, weights=weights, check=False)  # type: ignore[arg-type]
        kinds = {m.name: m.kind for m in stored_matrices(open_package(tmp_path / weights))}
        assert kinds.pop("lm_head") == "MatMulInt8"
        assert set(kinds.values()) == {kind}


def test_activation_bits_reach_every_integer_matrix(tiny_model: Model, tmp_path: Path) -> None:
    manifest = export(tiny_model("llama"), tmp_path / "p", weights="int8", activation_bits=16)  # also against torch
    for graph in (tmp_path / "p").glob("*.onnx"):  # the tiny heads are too narrow for a fused one
        nodes = onnx.load(graph, load_external_data=False).graph.node
        found = [a.i for node in nodes if "Int8" in node.op_type for a in node.attribute if a.name == "activation_bits"]
        assert found
        assert set(found) == {16}
    assert manifest.details["activation_bits"] == 16
    with pytest.raises(InputError, match="8 or 16 bits, not 12"):
        storage("bitmask", "int8", None, 12)


def test_settings() -> None:
    assert storage("bitmask", "int4", None) == Storage("bitmask", "int4", "int8", kv_cache="float16")
    assert storage("bitmask", "int4", None, 8, "float32").kv_cache == "float32"
    assert storage("bitmask", "float32", "int8").kv_cache == "float32"
    with pytest.raises(InputError, match="unknown KV cache 'int8'; choose one of float32, float16"):
        storage("bitmask", "int8", None, 8, "int8")
    assert storage("bitmask", "int4", "int4").head == "int4"
    assert storage("dense", "int8", None).joins is False
    assert joined_name(["a.q", "a.k"]) == "a.q+k"
    for layout, weights, head, sentence in (
        ("bitmask", "int3", None, "unknown weights 'int3'"),
        ("bitmask", "int8", "int2", "unknown head 'int2'; choose one of float32, int8, int4"),
        ("dense", "float16", None, "float16 weights exist only in the bitmask layout"),
        ("coo", "float32", None, "unknown layout 'coo'"),
    ):
        with pytest.raises(InputError, match=sentence):
            storage(layout, weights, head)


def test_the_command_says_what_rounding_cost(sparse_model: Model, tmp_path: Path) -> None:
    def tailcut(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "tailcut", "export", str(sparse_model("llama")), "-o", str(tmp_path / "p")]
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=120, check=False)

    done = tailcut("--weights", "int8", "--head", "int4", "--no-check")
    assert done.returncode == 0, done.stderr
    assert "int8: " in done.stdout
    assert "bits a weight in the blocks; the int4 head is" in done.stdout
    assert "no fused graph: head_dim 8 is no multiple of 16" in done.stdout
    assert "rounding moved a matrix by" in done.stdout
    facts = json.loads((tmp_path / "p" / "manifest.json").read_text())["details"]
    assert 0.001 < facts["weight_error_median"] <= facts["weight_error_largest"] < 0.02  # int8: about 0.5 %
    refused = tailcut("--weights", "int8", "--variant", "deepsparse", "--overwrite")
    assert refused.returncode == 2
    assert "float32 weights only" in refused.stderr
