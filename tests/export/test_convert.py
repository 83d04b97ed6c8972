"""Layouts: lossless both ways, and smaller where they promise to be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tailcut.errors import InputError
from tailcut.export.convert import convert
from tailcut.export.run import export
from tailcut.export.static import export_deepsparse
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.package import FUSED_NAME
from tailcut.kernels.stored import DOMAIN

Model = Callable[..., Path]


def same_bytes(one: Path, other: Path) -> bool:
    names = {path.name for path in one.glob("*.onnx*")}
    assert names == {path.name for path in other.glob("*.onnx*")}
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def nodes_of(package: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(package / "model.onnx", load_external_data=False).graph.node)


def sparse_nodes(package: Path) -> list[str]:
    return [node.name for node in nodes_of(package) if node.domain == DOMAIN]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_layouts_convert_into_each_other_byte_for_byte(kind: str, sparse_model: Model, tmp_path: Path) -> None:
    """There and back from either side. (Which modules share a matrix stays, so the sides differ for Llama.)"""
    model = sparse_model(kind, head_dim=16) if kind == "llama" else sparse_model(kind)
    for layout in ("dense", "bitmask"):
        export(model, tmp_path / layout, layout=layout, check=False)  # type: ignore[arg-type]
    to_bitmask = convert(tmp_path / "dense", tmp_path / "b", "bitmask")
    to_dense = convert(tmp_path / "bitmask", tmp_path / "d", "dense")
    convert(tmp_path / "b", tmp_path / "dense again", "dense")
    convert(tmp_path / "d", tmp_path / "bitmask again", "bitmask")
    assert same_bytes(tmp_path / "dense again", tmp_path / "dense")
    assert same_bytes(tmp_path / "bitmask again", tmp_path / "bitmask")
    assert (tmp_path / "bitmask" / FUSED_NAME).is_file() == (kind == "llama")
    assert (to_bitmask.details["layout"], to_dense.details["layout"]) == ("bitmask", "dense")
    assert to_bitmask.layers == to_dense.layers


@pytest.mark.parametrize("weights", ["float16", "int8", "int4"])
def test_other_precisions_convert_too(weights: Any, sparse_model: Model, tmp_path: Path) -> None:
    model = sparse_model("llama", head_dim=16, tie_word_embeddings=True)
    export(model, tmp_path / "p", weights=weights, check=False)
    if weights == "float16":
        with pytest.raises(InputError, match="float16 weights exist only in the bitmask layout"):
            convert(tmp_path / "p", tmp_path / "d", "dense")
        return
    convert(tmp_path / "p", tmp_path / "d", "dense")
    assert all(node.op_type.startswith("MatMulInt") for node in nodes_of(tmp_path / "d") if node.domain == DOMAIN)
    convert(tmp_path / "d", tmp_path / "again", "bitmask")
    assert same_bytes(tmp_path / "again", tmp_path / "p")
    logits = (Decoder(None, session=session_of(tmp_path / name)).prefill(np.array([[1, 2, 3]])) for name in "dp")
    assert np.array_equal(*logits)


def test_minus_zero_and_odd_widths_survive(sparse_model: Model, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    model = tmp_path / "m"
    shutil.copytree(sparse_model("llama", hidden_size=36, head_dim=6, intermediate_size=37), model)
    file = model / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    tensors["model.layers.0.mlp.down_proj.weight"][0, :3] = -0.0
    save_file(tensors, file, {"format": "pt"})
    export(model, tmp_path / "dense", layout="dense", check=False)
    convert(tmp_path / "dense", tmp_path / "b", "bitmask")
    convert(tmp_path / "b", tmp_path / "d", "dense")
    assert same_bytes(tmp_path / "d", tmp_path / "dense")


def test_bitmask_is_smaller_and_keeps_dense_what_would_grow(sparse_model: Model, tmp_path: Path) -> None:
    for sparsity in (0.0, 0.7):
        for layout in ("dense", "bitmask"):
            export(sparse_model("llama", sparsity), tmp_path / f"{layout}{sparsity}", layout=layout, check=False)  # type: ignore[arg-type]
    assert sparse_nodes(tmp_path / "bitmask0.0") == []
    assert len(sparse_nodes(tmp_path / "bitmask0.7")) == 3 * 4  # qkv, o, gate and up, down
    size = {name: (tmp_path / name / "model.onnx.data").stat().st_size for name in ("dense0.7", "bitmask0.7")}
    assert size["bitmask0.7"] < size["dense0.7"]
    weights = {name: (tmp_path / name / "model.onnx.data").stat().st_size for name in ("bitmask0.0", "dense0.0")}
    # the same matrices, some of them joined: only the padding to pages differs
    assert abs(weights["bitmask0.0"] - weights["dense0.0"]) <= 4096 * 3 * 3


def test_fully_zero_matrices_work(sparse_model: Model, tmp_path: Path) -> None:
    model = sparse_model("llama", 1.0)
    manifest = export(model, tmp_path / "p")
    assert manifest.sparsity == 1.0
    tokens = np.array([[1, 2, 3]])
    plain = Decoder(None, session=session_of(tmp_path / "p", plain=True)).prefill(tokens)
    assert np.array_equal(Decoder(tmp_path / "p", 1).prefill(tokens), plain)


def test_every_way_to_open_a_package_gives_the_same_logits(sparse_model: Model, tmp_path: Path) -> None:
    export(sparse_model("llama"), tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "d", "dense")
    tokens = np.random.default_rng(0).integers(0, 258, (2, 9))

    def logits(package: str, **how: Any) -> np.ndarray:  # type: ignore[type-arg]
        return Decoder(None, session=session_of(tmp_path / package, **how)).prefill(tokens)

    want = logits("d")
    for package, how in (("b", {}), ("b", {"plain": True}), ("d", {"plain": True}), ("b", {"spinning": False})):
        assert np.array_equal(logits(package, **how), want), (package, how)
    # tailcut's float32 kernels sum in another order, where they were compiled
    np.testing.assert_allclose(logits("b", kernels="auto"), want, atol=1e-4, rtol=1e-4)
    # without graph optimisation norms are not fused: another order of float32 sums of width 32
    unoptimised = logits("b", plain=True, optimise=False)
    np.testing.assert_allclose(unoptimised, want, atol=1e-4, rtol=1e-4)


def test_static_variant_and_in_place_are_refused(sparse_model: Model, tmp_path: Path) -> None:
    export_deepsparse(sparse_model("llama"), tmp_path / "s", context=16, prompt=8, check=False)
    with pytest.raises(InputError, match=r"model\.onnx|static variant"):
        convert(tmp_path / "s", tmp_path / "o", "dense")
    export(sparse_model("llama"), tmp_path / "p", check=False)
    with pytest.raises(InputError, match="in place"):
        convert(tmp_path / "p", tmp_path / "p", "dense")
    with pytest.raises(InputError, match="bitmask, dense, coo"):
        convert(tmp_path / "p", tmp_path / "o", "sell")  # type: ignore[arg-type]
    assert not (tmp_path / "o").exists()


def session_of(package: Path, **how: Any) -> Any:
    """A session of ONNX Runtime's own operators unless told otherwise."""
    from tailcut.kernels.session import load_session

    return load_session(package, threads=1, **({"kernels": "off"} | how))
