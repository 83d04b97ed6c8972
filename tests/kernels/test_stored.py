"""Quantised matrices of a package: what they decode to, and one sentence for each way they can be wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tailcut.errors import InputError
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.package import open_package
from tailcut.kernels.session import load_session
from tailcut.kernels.stored import module_names, stored_matrices
from tailcut.manifest import read_manifest

from .test_session import rewrite

Model = Callable[..., Path]


@pytest.fixture(scope="session", params=["int8", "int4"])
def quantised(request: pytest.FixtureRequest, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 70 % package's model with quantised weights; copy it before changing it."""
    from tailcut.export.run import export

    out = tmp_path_factory.mktemp("quantised") / request.param
    export(package.parent / "model", out, weights=request.param)
    return out


def test_module_names() -> None:
    assert module_names("a.b.q+k+v") == ("a.b.q", "a.b.k", "a.b.v")
    assert module_names("lm_head") == ("lm_head",)
    assert module_names("a.o") == ("a.o",)


def test_zeros_are_those_of_the_manifest(quantised: Path) -> None:
    layers = read_manifest(quantised).layers
    found = {matrix.name: matrix for matrix in stored_matrices(open_package(quantised))}
    assert {module for name in found for module in module_names(name)} == {*layers, "lm_head"}
    for name, matrix in found.items():
        if name != "lm_head":
            assert matrix.zeros == sum(layers[module].zeros for module in module_names(name))
            assert np.count_nonzero(matrix.dense() == 0) == matrix.zeros
    assert found["lm_head"].kind == "MatMulInt8"
    assert found["lm_head"].zeros == np.count_nonzero(found["lm_head"].q == 0)


def test_expansion_gives_the_logits_of_the_function_bodies(quantised: Path) -> None:
    tokens = np.array([[1, 2, 3], [4, 5, 6]])
    plain = Decoder(None, session=load_session(quantised, threads=1, plain=True)).prefill(tokens)
    expanded = Decoder(None, session=load_session(quantised, threads=1, kernels="off")).prefill(tokens)
    # the same float32 weights; ONNX Runtime may fuse other parts of the graph differently
    np.testing.assert_allclose(expanded, plain, atol=1e-5, rtol=1e-5)


def part(model: onnx.ModelProto, op: str, place: int) -> onnx.TensorProto:
    node = next(node for node in model.graph.node if node.op_type == op)
    return next(tensor for tensor in model.graph.initializer if tensor.name == node.input[place])


SPARSE = {"int8": "SparseMatMulInt8", "int4": "SparseMatMulInt4"}


def broken(quantised: Path, out: Path, place: int, change: Callable[[onnx.TensorProto], None]) -> Path:
    copy = Path(shutil.copytree(quantised, out))
    rewrite(copy, lambda model: change(part(model, SPARSE[quantised.name], place)))
    return copy


def test_scales_of_a_wrong_shape(quantised: Path, tmp_path: Path) -> None:
    def change(tensor: onnx.TensorProto) -> None:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), tensor.name))

    with pytest.raises(InputError, match=r"needs float32 scales \[\d+.*\], has float32 \[3\]"):
        load_session(broken(quantised, tmp_path / "c", 3, change), kernels="off")


def test_scales_of_a_wrong_type(quantised: Path, tmp_path: Path) -> None:
    def change(tensor: onnx.TensorProto) -> None:
        shape = tuple(tensor.dims)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float16), tensor.name))

    with pytest.raises(InputError, match=r"needs float32 scales .*, has float16"):
        load_session(broken(quantised, tmp_path / "c", 3, change), kernels="off")


def test_values_that_do_not_fit_the_mask(quantised: Path, tmp_path: Path) -> None:
    kind = np.int8 if quantised.name == "int8" else np.uint8

    def change(tensor: onnx.TensorProto) -> None:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, kind), tensor.name))

    with pytest.raises(InputError, match=r"mask names \d+ weights, 3 "):
        load_session(broken(quantised, tmp_path / "c", 1, change), kernels="off")


def test_values_of_a_wrong_type(quantised: Path, tmp_path: Path) -> None:
    def change(tensor: onnx.TensorProto) -> None:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), tensor.name))

    with pytest.raises(InputError, match=r"needs values of u?int8, has float32"):
        load_session(broken(quantised, tmp_path / "c", 1, change), kernels="off")


def test_a_missing_part(quantised: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(quantised, tmp_path / "c"))

    def drop(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == SPARSE[quantised.name]).input.pop()

    rewrite(copy, drop)
    with pytest.raises(InputError, match="needs values, mask, scales, shape stored in the package"):
        load_session(copy, kernels="off")


@pytest.mark.parametrize("dims", [[2], [2, 3, 4]])
def test_a_weight_that_is_no_matrix(quantised: Path, tmp_path: Path, dims: list[int]) -> None:
    copy = Path(shutil.copytree(quantised, tmp_path / "c"))

    def reshape(model: onnx.ModelProto) -> None:
        tensor = part(model, "MatMulInt8", 1)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(dims, np.int8), tensor.name))

    rewrite(copy, reshape)
    with pytest.raises(InputError, match="a matrix is needed"):
        load_session(copy, kernels="off")
