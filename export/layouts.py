"""How a matrix is stored: dense for MatMul, or bitmask for `tailcut::SparseMatMul`, whichever is smaller.

    dense     initializer `<module>.weight`, float32 [in, out], used by MatMul
    bitmask   `<module>.weight.values` [nnz], `.mask` uint8 [out, ceil(in / 8)], `.shape` int64 (out, in)

A bitmask package keeps a matrix dense when its mask and values would be larger than the matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np

from tailcut.allocation import Dense, LayerPlan
from tailcut.bitmask import Array, Packed, nonzero_bits, pack
from tailcut.errors import InputError
from tailcut.export.functions import DOMAIN, SPARSE_MATMUL
from tailcut.export.graph import Graph
from tailcut.export.weights import Weights
from tailcut.manifest import RealisedLayer

Layout = Literal["bitmask", "dense"]
PARTS: Final = ("values", "mask", "shape")


def check_layout(layout: str) -> Layout:
    """The layout of that name, or an InputError that lists them."""
    for known in get_args(Layout):
        if layout == known:
            return known  # type: ignore[no-any-return]  # get_args loses the Literal's type
    raise InputError(f"unknown layout {layout!r}; choose one of {', '.join(get_args(Layout))}")


def packed_is_smaller(matrix: Array) -> bool:
    """Whether mask and values of a matrix [out, in] take fewer bytes than the matrix."""
    rows, columns = matrix.shape
    kept = int(np.count_nonzero(nonzero_bits(matrix)))
    return bool(kept * matrix.dtype.itemsize + rows * ((columns + 7) // 8) < matrix.nbytes)


def dense_matmul(graph: Graph, x: str, module: str, matrix: Array) -> str:
    """x [..., in] @ W^T with W [out, in] stored transposed, as MatMul wants it."""
    return graph.op("MatMul", x, graph.weight(f"{module}.weight", matrix.T), name=module)


def sparse_matmul(graph: Graph, x: str, module: str, packed: Packed) -> str:
    """x [..., in] @ W^T with W stored without its zeros."""
    parts: tuple[Array, ...] = (packed.values, packed.mask, np.asarray(packed.shape, np.int64))
    names = [graph.weight(f"{module}.weight.{part}", array) for part, array in zip(PARTS, parts, strict=True)]
    return graph.op(SPARSE_MATMUL, x, *names, name=module, domain=DOMAIN)


@dataclass(frozen=True, slots=True)
class Linears:
    """Writes linears into a graph and remembers what each became."""

    graph: Graph
    weights: Weights
    layout: Layout
    plans: Mapping[str, LayerPlan] = field(default_factory=dict)  # of the source manifest
    realised: dict[str, RealisedLayer] = field(default_factory=dict)

    def apply(self, x: str, module: str, out: int, inputs: int) -> str:
        """x [..., in] -> x W^T + b [..., out]; the bias is added if the checkpoint has one."""
        known = f"{module}.weight"
        if known in self.graph.data:  # a second graph over the same data file
            y = self.graph.op("MatMul", x, self._again(known), name=module)
        else:
            y = self._store(x, module, out, inputs)
        if self.weights.has(module, "bias"):
            bias = self.weights.vector(module, "bias", out)
            y = self.graph.op("Add", y, self.graph.weight(f"{module}.bias", bias))
        return y

    def _again(self, name: str) -> str:
        self.graph.tensors[name] = self.graph.data.known(name)
        return name

    def _store(self, x: str, module: str, out: int, inputs: int) -> str:
        matrix = self.weights.matrix(module, out, inputs)
        zeros = int(matrix.size - np.count_nonzero(matrix))
        plan = self.plans.get(module, LayerPlan(Dense()))
        self.realised[module] = RealisedLayer(plan, (out, inputs), zeros)
        if self.layout == "bitmask" and packed_is_smaller(matrix):
            return sparse_matmul(self.graph, x, module, pack(matrix))
        return dense_matmul(self.graph, x, module, matrix)
