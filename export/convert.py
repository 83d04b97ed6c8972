"""Between layouts, losslessly: the bits of every weight stay, so converting back gives the same bytes.

A matrix is recognised by its node: MatMul with initializer `<node name>.weight`, or SparseMatMul with its three parts. Each
is read, rewritten and dropped in turn; everything else is copied as it is.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tailcut import __version__
from tailcut.bitmask import Array, pack, unpack
from tailcut.errors import InputError
from tailcut.export.functions import DOMAIN, SPARSE_MATMUL, sparse_functions
from tailcut.export.graph import DATA_NAME, MODEL_NAME, DataFile
from tailcut.export.layouts import PARTS, Layout, check_layout, packed_is_smaller
from tailcut.export.run import check_structure, write_model
from tailcut.files import new_directory
from tailcut.kernels.package import Package, open_package
from tailcut.kernels.session import packed_matrix
from tailcut.manifest import Manifest, file_entries, write_manifest
from tailcut.progress import Reporter, silent

Tensors = dict[str, TensorProto]


def convert(
    package: Path, out: Path, layout: Layout, *, overwrite: bool = False, report: Reporter = silent
) -> Manifest:
    """Write `package` in another layout as `out`; the source is verified first, hashes included."""
    chosen = check_layout(layout)
    if out.resolve() == package.resolve():
        raise InputError(f"{out}: a package is not converted in place; choose another output")
    source = open_package(package, hashes=True)
    if source.manifest.details.get("variant") != "onnx":
        raise InputError(f"{package}: only the dynamic ONNX package has layouts, this is the static variant")
    with new_directory(out, overwrite=overwrite) as directory:
        _write(source, directory, chosen, report)
        for name in source.manifest.files.keys() - {MODEL_NAME, DATA_NAME}:
            shutil.copyfile(package / name, directory / name)
        manifest = replace(
            source.manifest,
            made_by=f"tailcut {__version__} convert",
            files=file_entries(directory),
            details=dict(source.manifest.details) | {"layout": chosen},
        )
        write_manifest(manifest, directory)
    return manifest


def _write(source: Package, directory: Path, layout: Layout, report: Reporter) -> None:
    old = {tensor.name: tensor for tensor in source.model.graph.initializer}
    owners = _owners(source.model, old)
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    nodes = {node.name: node for node in model.graph.node}
    made: list[TensorProto] = []
    with DataFile(directory / DATA_NAME) as data:
        for number, name in enumerate(old, 1):
            if name not in owners:
                made += _copy(source, old[name], data)
            elif name == _first(owners[name]):
                made += _matrix(source, owners[name], nodes[owners[name].name], old, data, layout)
            report("convert", number, len(old))
    del model.graph.initializer[:], model.functions[:], model.opset_import[:]
    model.graph.initializer.extend(made)
    _import_functions(model, source.model)
    write_model(model, directory / MODEL_NAME)
    check_structure(directory / MODEL_NAME)


def _import_functions(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    opset = next(entry.version for entry in before.opset_import if entry.domain == "")
    model.opset_import.append(helper.make_opsetid("", opset))
    if any(node.domain == DOMAIN for node in model.graph.node):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        model.functions.extend(sparse_functions(opset))


def _owners(model: onnx.ModelProto, tensors: Tensors) -> dict[str, onnx.NodeProto]:
    """Initializer name -> the linear it is a part of."""
    found: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        is_dense = node.op_type == "MatMul" and node.input[1] == f"{node.name}.weight" and node.input[1] in tensors
        if is_dense or (node.domain == DOMAIN and node.op_type == SPARSE_MATMUL):
            found |= dict.fromkeys(node.input[1:], node)
    return found


def _first(node: onnx.NodeProto) -> str:
    return str(node.input[1])


def _copy(source: Package, tensor: TensorProto, data: DataFile) -> Iterator[TensorProto]:
    if tensor.data_location == TensorProto.EXTERNAL:
        yield data.store(tensor.name, source.array(tensor))
    else:
        yield tensor


def _matrix(
    source: Package, node: onnx.NodeProto, target: onnx.NodeProto, tensors: Tensors, data: DataFile, layout: Layout
) -> Iterator[TensorProto]:
    """The initializers of one linear in the new layout; `target` is its node in the new graph."""
    if node.domain == DOMAIN:
        matrix = unpack(packed_matrix(source, node, tensors))
    else:
        matrix = source.array(tensors[_first(node)]).T
    name = f"{node.name}.weight"
    if layout == "bitmask" and packed_is_smaller(matrix):
        packed = pack(matrix)
        parts: tuple[Array, ...] = (packed.values, packed.mask, np.asarray(packed.shape, np.int64))
        names = [f"{name}.{part}" for part in PARTS]
        _become(target, SPARSE_MATMUL, DOMAIN, names)
        yield from (data.store(part, array) for part, array in zip(names, parts, strict=True))
    else:
        _become(target, "MatMul", "", [name])
        yield data.store(name, matrix.T)


def _become(node: onnx.NodeProto, kind: str, domain: str, weights: list[str]) -> None:
    made = helper.make_node(kind, [node.input[0], *weights], list(node.output), name=node.name, domain=domain)
    node.CopyFrom(made)
