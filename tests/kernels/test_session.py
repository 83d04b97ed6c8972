"""Packages that are damaged, tampered with or incomplete: one sentence, before anything is allocated."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tailcut.bitmask import pack
from tailcut.errors import InputError
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.package import open_package
from tailcut.kernels.reference import sparse_matmul
from tailcut.kernels.session import load_session, packed_matrices
from tailcut.kernels.stored import module_names
from tailcut.manifest import FileEntry, read_manifest, write_manifest


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy"))


def accept(directory: Path) -> None:
    """Make the manifest list the files as they are now, so that later checks are reached."""
    from dataclasses import replace

    from tailcut.manifest import file_entries

    write_manifest(replace(read_manifest(directory), files=file_entries(directory)), directory)


def rewrite(directory: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    change(model)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    accept(directory)


def tensor(model: onnx.ModelProto, ending: str, *, external: bool) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name.endswith(ending) and bool(t.external_data) == external)


def test_missing_data_file(copy: Path) -> None:
    (copy / "model.onnx.data").unlink()
    with pytest.raises(InputError, match=r"model\.onnx\.data: listed in the manifest but missing"):
        load_session(copy)


def test_missing_manifest(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    with pytest.raises(InputError, match="not made by tailcut"):
        load_session(copy)


def test_truncated_data_file(copy: Path) -> None:
    data = (copy / "model.onnx.data").read_bytes()
    (copy / "model.onnx.data").write_bytes(data[:-10])
    with pytest.raises(InputError, match="the file is damaged"):
        load_session(copy)
    accept(copy)  # even if the manifest agrees with the short file
    with pytest.raises(InputError, match="ends at byte"):
        load_session(copy)


def test_changed_bytes_are_found_by_hash(copy: Path) -> None:
    data = bytearray((copy / "model.onnx.data").read_bytes())
    data[0] ^= 1
    (copy / "model.onnx.data").write_bytes(data)
    with pytest.raises(InputError, match="sha256 differs"):
        load_session(copy, hashes=True)


def test_tampered_mask_is_refused(copy: Path) -> None:
    def flip(model: onnx.ModelProto) -> None:
        mask = tensor(model, ".mask", external=False)
        mask.raw_data = bytes([mask.raw_data[0] ^ 1]) + mask.raw_data[1:]

    rewrite(copy, flip)
    with pytest.raises(InputError, match=r"mask names \d+ weights, \d+ values are stored"):
        load_session(copy)


def test_shape_that_does_not_fit_the_mask(copy: Path) -> None:
    def inflate(model: onnx.ModelProto) -> None:
        shape = tensor(model, ".shape", external=False)
        shape.raw_data = np.asarray([1 << 40, 1 << 20], np.int64).tobytes()

    rewrite(copy, inflate)
    with pytest.raises(InputError, match="does not belong to a 1099511627776 x 1048576 matrix"):
        load_session(copy, kernels="off")


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_external_data_cannot_leave_the_directory(copy: Path, location: str) -> None:
    def escape(model: onnx.ModelProto) -> None:
        entries = tensor(model, "", external=True).external_data
        next(entry for entry in entries if entry.key == "location").value = location

    (copy.parent / "secret").write_bytes(b"\0" * 100000)
    rewrite(copy, escape)
    with pytest.raises(InputError, match="leaves its directory"):
        load_session(copy)


def test_unlisted_data_file_is_refused(copy: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        entries = tensor(model, "", external=True).external_data
        next(entry for entry in entries if entry.key == "location").value = "other.data"

    rewrite(copy, rename)
    (copy / "other.data").write_bytes((copy / "model.onnx.data").read_bytes())
    with pytest.raises(InputError, match="which the manifest does not list"):
        load_session(copy)


@pytest.mark.parametrize(
    ("key", "value"), [("length", "12"), ("offset", "-4096"), ("offset", "x"), ("length", "1" * 30)]
)
def test_external_sizes_must_agree(copy: Path, key: str, value: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        entries = tensor(model, "", external=True).external_data
        next(entry for entry in entries if entry.key == key).value = value

    rewrite(copy, change)
    with pytest.raises(InputError, match=r"bytes|no valid external"):
        load_session(copy)


def test_manifest_cannot_name_files_outside(copy: Path) -> None:
    from dataclasses import replace

    manifest = read_manifest(copy)
    write_manifest(replace(manifest, files=dict(manifest.files) | {"../x": FileEntry(1, "0")}), copy)
    with pytest.raises(InputError, match="leaves its directory"):
        load_session(copy)


def test_garbage_graph_and_wrong_kind(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"\xff" * 100)
    accept(copy)
    with pytest.raises(InputError, match="not an ONNX file or damaged"):
        load_session(copy)
    body = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(body | {"kind": "model"}))
    with pytest.raises(InputError, match="tailcut export"):
        load_session(copy)


def test_names_that_are_not_text_are_refused(copy: Path) -> None:
    graph = copy / "model.onnx"
    content = graph.read_bytes()
    at = content.index(b"model.onnx.data")
    graph.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with pytest.raises(InputError, match="not text"):
        load_session(copy)


def test_a_graph_onnxruntime_refuses(copy: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "NoSuchOperator"

    rewrite(copy, unknown)
    with pytest.raises(InputError, match="ONNX Runtime cannot open the graph"):
        load_session(copy)


def test_threads_must_be_positive(package: Path) -> None:
    with pytest.raises(InputError, match="at least 1"):
        load_session(package, threads=0)


def test_packed_matrices_are_the_pruned_ones(package: Path) -> None:
    manifest = read_manifest(package)
    found = dict(packed_matrices(open_package(package)))
    assert {module for name in found for module in module_names(name)} == manifest.layers.keys()
    for name, packed in found.items():  # q, k and v are one matrix, gate and up another
        layers = [manifest.layers[module] for module in module_names(name)]
        assert packed.shape == (sum(layer.shape[0] for layer in layers), layers[0].shape[1])
        assert packed.values.size == sum(layer.shape[0] * layer.shape[1] - layer.zeros for layer in layers)


def test_reference_matches_a_dense_product() -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((9, 13)) < 0.4, rng.standard_normal((9, 13)), 0).astype(np.float32)
    x = rng.standard_normal((2, 3, 13)).astype(np.float32)
    want = np.einsum("bsi,oi->bso", x.astype(np.float64), dense.astype(np.float64))
    # both float64 sums of 13 terms; only the order may differ
    np.testing.assert_allclose(sparse_matmul(x, pack(dense)), want, rtol=1e-13, atol=1e-14)


def test_decoder_checks_its_use(package: Path) -> None:
    decoder = Decoder(package, threads=1)
    with pytest.raises(InputError, match="run prefill first"):
        decoder.step(np.array([1]))
    decoder.prefill(np.array([[1, 2], [3, 4]]))
    with pytest.raises(InputError, match="1 tokens for 2 rows"):
        decoder.step(np.array([1]))
    with pytest.raises(InputError, match="prefill takes tokens"):
        decoder.prefill(np.zeros((1, 0), np.int64))
    with pytest.raises(InputError, match="needs a package"):
        Decoder(None)


def test_steps_equal_one_prefill(package: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 258, (2, 7))
    decoder = Decoder(package, threads=1)
    whole = decoder.prefill(tokens)
    steps = [decoder.prefill(tokens[:, :1])[:, -1]] + [decoder.step(tokens[:, index]) for index in range(1, 7)]
    # float32 matrix products of other shapes sum in another order
    np.testing.assert_allclose(np.stack(steps, 1), whole, atol=1e-4, rtol=1e-4)


def test_opening_a_package_imports_no_torch(package: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tailcut.kernels.session import load_session\n"
        f"load_session(Path({str(package)!r})); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
