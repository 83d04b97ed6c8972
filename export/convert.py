"""Between layouts, losslessly: the bits of every weight stay, so converting back gives the same bytes.

A matrix is recognised by its node: MatMul with initializer `<node name>.weight`, or one of tailcut's functions with its
parts. Each is read, rewritten and dropped in turn; everything else is copied as it is. Which modules share a matrix does
not change: a package that was exported with q, k and v in one matrix keeps that in its dense layout.

`coo` is the dense layout with the matrices that it makes smaller as the standard's sparse initializers, inside the graph:
ONNX's checker reads them nowhere else, so the whole graph is at most 2 GiB and fused.onnx, which would hold them again, is
left out. Its full shape inference knows no sparse MatMul either, so only the structure is checked.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import SparseTensorProto, TensorProto, helper

from tailcut import __version__
from tailcut.bitmask import unpack
from tailcut.coo import coo_is_smaller
from tailcut.errors import InputError
from tailcut.export.forms import Form, Layout, check_layout, float_form, half_form, integer_form
from tailcut.export.functions import INTEGER_OPS, MATRIX_FUNCTIONS, functions_for
from tailcut.export.graph import DataFile
from tailcut.export.run import check_structure, write_model
from tailcut.files import new_directory
from tailcut.kernels.package import DATA_NAME, FUSED_NAME, MODEL_NAME, Package, open_package
from tailcut.kernels.stored import DOMAIN, is_stored, stored_matrix
from tailcut.manifest import Manifest, file_entries, write_manifest
from tailcut.onnx_files import TensorReader, sparse_tensor
from tailcut.progress import Reporter, silent

Target = Layout | Literal["coo"]
Stored = TensorProto | SparseTensorProto
Tensors = dict[str, Stored]
COO: Final = "coo"
_PLACE: Final = "initializer "  # in a sparse tensor's note: where it stood, since ONNX lists sparse ones apart
_MAX_GRAPH_BYTES: Final = (1 << 31) - 1  # protobuf's own limit


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One conversion under way: where tensors are read and written, and what they became."""

    source: Package
    data: DataFile
    layout: Target
    made: Tensors = field(default_factory=dict)  # new initializers by name
    forms: dict[str, tuple[str, str, tuple[str, ...]]] = field(default_factory=dict)  # node -> op, domain, its parts

    @property
    def form(self) -> Layout:
        """What the matrices are written as that coordinates do not hold."""
        return "dense" if self.layout == COO else self.layout

    def read(self, tensor: Stored) -> npt.NDArray[Any]:
        """A tensor's values, zeros written out."""
        if isinstance(tensor, SparseTensorProto):
            return TensorReader(self.source.directory).read_sparse(tensor)
        return self.source.array(tensor)

    def store(self, name: str, array: npt.NDArray[Any], *, matrix: bool) -> Stored:
        """Write an initializer; a matrix as coordinates where the layout has them and they are smaller."""
        if matrix and self.layout == COO and coo_is_smaller(array):
            return sparse_tensor(name, array)
        return self.data.store(name, array)


def convert(
    package: Path, out: Path, layout: Target, *, overwrite: bool = False, report: Reporter = silent
) -> Manifest:
    """Write `package` in another layout as `out`; the source is verified first, hashes included."""
    chosen: Target = COO if layout == COO else check_layout(layout, (COO,))
    if out.resolve() == package.resolve():
        raise InputError(f"{out}: a package is not converted in place; choose another output")
    source = open_package(package, hashes=True)
    if source.manifest.details.get("variant") != "onnx":
        raise InputError(f"{package}: only the dynamic ONNX package has layouts, this is the static variant")
    with new_directory(out, overwrite=overwrite) as directory:
        _write(source, directory, chosen, report)
        for name in source.manifest.files.keys() - {MODEL_NAME, FUSED_NAME, DATA_NAME}:
            shutil.copyfile(package / name, directory / name)
        manifest = replace(
            source.manifest,
            made_by=f"tailcut {__version__} convert",
            files=file_entries(directory),
            details=dict(source.manifest.details) | {"layout": chosen},
        )
        write_manifest(manifest, directory)
    return manifest


def _write(source: Package, directory: Path, layout: Target, report: Reporter) -> None:
    graphs = {MODEL_NAME: source}
    if FUSED_NAME in source.manifest.files and layout != COO:
        graphs[FUSED_NAME] = open_package(source.directory, graph=FUSED_NAME)
    with DataFile(directory / DATA_NAME) as data:
        rewrite = Rewrite(source, data, layout)
        names = {file: _store(rewrite, graph.model, report) for file, graph in graphs.items()}
    for file, graph in graphs.items():
        made = _rewritten(graph.model, rewrite, names[file])
        if made.ByteSize() > _MAX_GRAPH_BYTES:
            raise InputError(
                f"{source.directory}: {made.ByteSize() / 1e9:.1f} GB of coordinates; a graph has at most 2 GiB"
            )
        write_model(made, directory / file)
    check_structure(directory / MODEL_NAME, full=layout != COO)


def _store(rewrite: Rewrite, model: onnx.ModelProto, report: Reporter) -> list[str]:
    """Write what this graph uses and no graph before it wrote; the names of its initializers, in order."""
    old = initializers(model)
    owners = _owners(model, old)
    names: dict[str, None] = {}
    for number, name in enumerate(old, 1):
        if name in owners:
            names |= dict.fromkeys(_matrix(rewrite, owners[name], old))
        else:
            names[_copy(rewrite, old[name])] = None
        report("convert", number, len(old))
    return list(names)


def initializers(model: onnx.ModelProto) -> Tensors:
    """Dense and sparse initializers by name, the sparse ones where they stood before they were made sparse."""
    found: list[tuple[str, Stored]] = [(tensor.name, tensor) for tensor in model.graph.initializer]
    for sparse in model.graph.sparse_initializer:
        note = sparse.values.doc_string.removeprefix(_PLACE)
        place = int(note) if note.isascii() and note.isdigit() else len(found)
        found.insert(place, (sparse.values.name, sparse))
    return dict(found)


def _owners(model: onnx.ModelProto, tensors: Tensors) -> dict[str, onnx.NodeProto]:
    """Initializer name -> the linear it is a part of."""
    found: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        is_dense = node.op_type == "MatMul" and node.input[1] == f"{node.name}.weight" and node.input[1] in tensors
        if is_dense or is_stored(node):
            found |= dict.fromkeys(node.input[1:], node)
    return found


def _copy(rewrite: Rewrite, tensor: Stored) -> str:
    if isinstance(tensor, SparseTensorProto):
        raise InputError(
            f"{rewrite.source.directory}: the sparse initializer {tensor.values.name} is no matrix's weight"
        )
    if tensor.name not in rewrite.made:
        outside = tensor.data_location == TensorProto.EXTERNAL
        rewrite.made[tensor.name] = rewrite.data.store(tensor.name, rewrite.source.array(tensor)) if outside else tensor
    return str(tensor.name)


def _matrix(rewrite: Rewrite, node: onnx.NodeProto, tensors: Tensors) -> tuple[str, ...]:
    """Names of a linear's initializers in the new layout, written at first use."""
    if node.name not in rewrite.forms:
        form = _new_form(rewrite, node, tensors)
        names = form.names(str(node.input[1]).rpartition(".weight")[0])
        for name, array in zip(names, form.parts.values(), strict=True):
            rewrite.made[name] = rewrite.store(name, array, matrix=form.op == "MatMul")
        rewrite.forms[node.name] = form.op, form.domain, names
    return rewrite.forms[node.name][2]


def _new_form(rewrite: Rewrite, node: onnx.NodeProto, tensors: Tensors) -> Form:
    if not is_stored(node):
        return float_form(rewrite.read(tensors[node.input[1]]).T, rewrite.form)
    stored = stored_matrix(rewrite.source, node, _dense_only(tensors))
    if stored.scales is None:
        values = stored.dense()
        return (float_form if values.dtype == np.float32 else half_form)(values, rewrite.form)
    q = stored.q if stored.packed is None else unpack(stored.packed)
    shared = _is_shared(rewrite.source.model, str(node.input[1]))
    return integer_form(np.asarray(q, np.int8), stored.scales, "dense" if shared else rewrite.form)


def _dense_only(tensors: Tensors) -> Mapping[str, TensorProto]:
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, TensorProto)}


def _is_shared(model: onnx.ModelProto, part: str) -> bool:
    """Whether several nodes read it: a tied embedding, whose rows must stay whole."""
    return sum(part in node.input for node in model.graph.node) > 1


def _rewritten(before: onnx.ModelProto, rewrite: Rewrite, names: list[str]) -> onnx.ModelProto:
    """The graph with its matrices in their new forms."""
    model = onnx.ModelProto()
    model.CopyFrom(before)
    for node in model.graph.node:
        if node.name in rewrite.forms:
            op, domain, parts = rewrite.forms[node.name]
            made = helper.make_node(op, [node.input[0], *parts], list(node.output), name=node.name, domain=domain)
            made.attribute.extend(node.attribute if op in INTEGER_OPS else [])
            node.CopyFrom(made)
    del model.graph.initializer[:], model.graph.sparse_initializer[:], model.functions[:], model.opset_import[:]
    for place, name in enumerate(names):
        made_tensor = rewrite.made[name]
        if isinstance(made_tensor, SparseTensorProto):
            made_tensor.values.doc_string = f"{_PLACE}{place}"
            model.graph.sparse_initializer.append(made_tensor)
        else:
            model.graph.initializer.append(made_tensor)
    _import_functions(model, before)
    return model


def _import_functions(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    opsets = {entry.domain: entry.version for entry in before.opset_import}
    own = {DOMAIN: 1} if any(node.domain == DOMAIN for node in model.graph.node) else {}
    others = {domain: version for domain, version in opsets.items() if domain not in ("", DOMAIN)}
    for domain, version in ({"": opsets[""]} | own | others).items():
        model.opset_import.append(helper.make_opsetid(domain, version))
    others_too = [function for function in before.functions if function.name not in MATRIX_FUNCTIONS]
    model.functions.extend([*functions_for(model.graph.node, opsets[""]), *others_too])
