"""The weights of an ONNX package under the names that a Hugging Face checkpoint has, one at a time.

A package joins projections that share their input (`a.q_proj+k_proj`), turns dense matrices round and leaves zeros out;
engines that run the model by themselves want each matrix as [out, in]. Rounded matrices come as integers and scales.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from tailcut.allocation import NM
from tailcut.bitmask import unpack
from tailcut.errors import InputError
from tailcut.kernels.package import Package, open_package
from tailcut.kernels.stored import Stored, is_stored, module_names, stored_matrix
from tailcut.manifest import Manifest, read_manifest
from tailcut.quantised import Scales, dequantise, unpack_nibbles
from tailcut.shapes import require_equal

Array = npt.NDArray[Any]
EMBEDDING: Final = "model.embed_tokens"
HEAD: Final = "lm_head"


@dataclass(frozen=True, slots=True)
class Weight:
    """One parameter: values as stored (float [out, in] or [n], or q int8 [out, in] with the scales of `tailcut.quantised`)."""

    values: Array
    scales: Scales | None = None

    def dense(self) -> Array:
        """In floating point: the values' own type, or q * scale as float32."""
        return self.values if self.scales is None else dequantise(np.asarray(self.values, np.int8), self.scales)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Where a module's matrix is: rows start to stop of a stored node's, or of a tensor that lies turned round."""

    node: onnx.NodeProto | None
    tensor: str
    start: int
    stop: int | None  # None: all


class PackageWeights:
    """Reads `model.layers.0.mlp.up_proj.weight` and its like from a package."""

    def __init__(self, directory: Path) -> None:
        self.package: Package = open_package(directory)
        self.config: Mapping[str, Any] = json.loads((directory / "config.json").read_bytes())
        self._last: tuple[str, Stored] | None = None  # joined matrices are asked for part by part

    @cached_property
    def _tensors(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.package.model.graph.initializer}

    @cached_property
    def _rows(self) -> dict[str, _Rows]:
        heights = projection_rows(self.config)
        found: dict[str, _Rows] = {}
        for node in self.package.model.graph.node:
            if is_stored(node):
                found |= _split(module_names(node.name), heights, node, "")
        for name, tensor in self._tensors.items():
            modules = module_names(name.removesuffix(".weight"))
            turned = name.endswith(".weight") and len(tensor.dims) == 2 and modules[0] not in (EMBEDDING, *found)
            if turned:
                found |= _split(modules, heights, None, name)
        return found

    def read(self, name: str) -> Weight:
        """One parameter by its Hugging Face name; InputError if the package does not hold it."""
        module = name.removesuffix(".weight")
        if module in self._rows:
            return self._matrix(self._rows[module])
        if module == EMBEDDING or (module == HEAD and self.config.get("tie_word_embeddings")):
            return self._table()
        if name in self._tensors:
            return Weight(self.package.array(self._tensors[name]))
        raise InputError(f"{self.package.directory}: holds no {name}; only packages of the llama family can be read so")

    def _matrix(self, rows: _Rows) -> Weight:
        part = slice(rows.start, rows.stop)
        if rows.node is None:
            return Weight(self.package.array(self._tensors[rows.tensor])[:, part].T)
        if self._last is None or self._last[0] != rows.node.name:
            self._last = (rows.node.name, stored_matrix(self.package, rows.node, self._tensors))
        stored = self._last[1]
        values = unpack(stored.packed) if stored.packed is not None else np.asarray(stored.q)
        return Weight(values[part], None if stored.scales is None else stored.scales[part])

    def _table(self) -> Weight:
        """The embedding [vocabulary, hidden], whatever its precision."""
        name = f"{EMBEDDING}.weight"
        if name not in self._tensors:
            raise InputError(
                f"{self.package.directory}: holds no {name}; only packages of the llama family can be read so"
            )
        values = self.package.array(self._tensors[name])
        scales = self._tensors.get(f"{name}.scales")
        if scales is None:
            return Weight(values)
        codes = unpack_nibbles(values, int(self.config["hidden_size"])) if values.dtype == np.uint8 else values
        return Weight(codes, np.asarray(self.package.array(scales), np.float32))


def _split(
    modules: tuple[str, ...], heights: Mapping[str, int], node: onnx.NodeProto | None, tensor: str
) -> dict[str, _Rows]:
    if len(modules) == 1:
        return {modules[0]: _Rows(node, tensor, 0, None)}
    found, start = {}, 0
    for module in modules:
        stop = start + heights[module.rpartition(".")[2]]
        found[module] = _Rows(node, tensor, start, stop)
        start = stop
    return found


def projection_rows(config: Mapping[str, Any]) -> dict[str, int]:
    """Outputs of the projections that packages join; InputError where they differ by block."""
    require_equal(config, "reading single projections of a package")
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    cached = (config.get("num_key_value_heads") or heads) * width
    inner = config["intermediate_size"]
    return {"q_proj": heads * width, "k_proj": cached, "v_proj": cached, "gate_proj": inner, "up_proj": inner}


def not_two_four(directory: Path) -> str | None:
    """None if every matrix that the manifest says was cut was cut to 2:4 (or to less of every four), else which was not."""
    return _not_two_four(read_manifest(directory))


def _not_two_four(manifest: Manifest) -> str | None:
    for name, layer in manifest.layers.items():
        pattern = layer.plan.pattern
        fits = isinstance(pattern, NM) and pattern.block in (2, 4) and pattern.keep * 4 <= 2 * pattern.block
        if pattern.sparsity > 0 and not fits:
            return f"{name} is cut as {pattern}, not as 2:4; compress with --pattern 2:4 for this engine"
    return None
