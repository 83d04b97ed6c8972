"""`tailcut convert --layout coo`: standard sparse initializers, without loss."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tailcut.errors import InputError
from tailcut.export.convert import convert, initializers
from tailcut.export.run import export
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.package import DATA_NAME, FUSED_NAME, MODEL_NAME
from tailcut.kernels.session import load_session
from tailcut.manifest import read_manifest

Model = Callable[..., Path]


def test_coo_and_back_gives_the_same_bytes(sparse_model: Model, tmp_path: Path) -> None:
    """GPT-NeoX has no fused graph and shares nothing: every byte comes back, from both other layouts."""
    for layout in ("dense", "bitmask"):
        export(sparse_model("gpt_neox"), tmp_path / layout, layout=layout, check=False)
        made = convert(tmp_path / layout, tmp_path / f"coo of {layout}", "coo")
        convert(tmp_path / f"coo of {layout}", tmp_path / f"{layout} again", layout)
        for name in (MODEL_NAME, DATA_NAME):
            assert (tmp_path / f"{layout} again" / name).read_bytes() == (tmp_path / layout / name).read_bytes(), name
        assert made.details["layout"] == "coo"
    graph = onnx.load(tmp_path / "coo of dense" / MODEL_NAME, load_external_data=False)
    assert len(graph.graph.sparse_initializer) == 3 * 4
    onnx.checker.check_model(str(tmp_path / "coo of dense" / MODEL_NAME))


def test_coo_runs_in_plain_onnx_runtime(sparse_model: Model, tmp_path: Path) -> None:
    export(sparse_model("llama", 0.8, head_dim=16), tmp_path / "p", check=False)
    manifest = convert(tmp_path / "p", tmp_path / "c", "coo")
    assert FUSED_NAME not in manifest.files
    assert FUSED_NAME in read_manifest(tmp_path / "p").files
    onnxruntime.InferenceSession(str(tmp_path / "c" / MODEL_NAME), providers=["CPUExecutionProvider"])
    tokens = np.array([[1, 2, 3]])
    convert(tmp_path / "p", tmp_path / "d", "dense")
    got, want = (
        Decoder(None, session=load_session(tmp_path / name, threads=1, kernels="off")).prefill(tokens) for name in "cd"
    )
    assert np.array_equal(got, want)


def test_little_sparsity_stays_dense_and_half_precision_is_refused(sparse_model: Model, tmp_path: Path) -> None:
    export(sparse_model("gpt2", 0.5), tmp_path / "p", layout="dense", check=False)
    convert(tmp_path / "p", tmp_path / "c", "coo")
    assert not onnx.load(tmp_path / "c" / MODEL_NAME, load_external_data=False).graph.sparse_initializer
    export(sparse_model("gpt2", 0.8), tmp_path / "h", weights="float16", check=False)
    with pytest.raises(InputError, match="float16 weights exist only in the bitmask layout"):
        convert(tmp_path / "h", tmp_path / "ch", "coo")
    assert not (tmp_path / "ch").exists()


def test_integers_stay_as_in_the_dense_layout(sparse_model: Model, tmp_path: Path) -> None:
    export(sparse_model("gpt_neox", 0.9), tmp_path / "p", weights="int8", check=False)
    convert(tmp_path / "p", tmp_path / "c", "coo")
    convert(tmp_path / "c", tmp_path / "again", "bitmask")
    assert (tmp_path / "again" / DATA_NAME).read_bytes() == (tmp_path / "p" / DATA_NAME).read_bytes()


def test_damaged_coordinates_are_refused(sparse_model: Model, tmp_path: Path) -> None:
    export(sparse_model("gpt_neox"), tmp_path / "p", layout="dense", check=False)
    convert(tmp_path / "p", tmp_path / "c", "coo")
    path = tmp_path / "c" / MODEL_NAME
    model = onnx.load(path, load_external_data=False)
    model.graph.sparse_initializer[0].dims[0] = 1 << 50
    path.write_bytes(model.SerializeToString())
    assert len(initializers(model)) > 12
    with pytest.raises(InputError, match=r"bytes, the manifest says|sha256"):
        convert(tmp_path / "c", tmp_path / "d", "dense")
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    manifest["files"].pop(MODEL_NAME)
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="beyond the 2 GiB"):
        convert(tmp_path / "c", tmp_path / "d", "dense")
    assert not (tmp_path / "d").exists()
