"""Writes linears into graphs: which of them share one matrix, at what precision, and what each became.

    dense     every module has its own matrix with its zeros written out
    bitmask   q, k and v are one matrix, gate and up are one (their input is the same, so it is read and quantised once);
              zeros are left out of a matrix when it is smaller without them

A joined matrix is named after its modules, `model.layers.0.self_attn.q_proj+k_proj+v_proj`; its rows follow in that order.

Matrices that the source directory holds as integers (tailcut.sidecar) keep them, whatever the storage says of the rest, so
modules of one input may have several precisions: neighbours of the same one share a matrix, and the outputs are joined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import cast, get_args

import numpy as np

from tailcut.allocation import Dense, LayerPlan
from tailcut.checkpoint import float32
from tailcut.errors import InputError
from tailcut.export.forms import Form, Layout, Loss, check_layout, encode, integer_form, rounding_loss
from tailcut.export.functions import ACTIVATION_BITS, INTEGER_OPS
from tailcut.export.graph import Graph
from tailcut.export.quantise import HALVES, Matrix, check_precision, quantise
from tailcut.export.weights import Weights
from tailcut.kernels.stored import JOIN
from tailcut.manifest import RealisedLayer
from tailcut.quantised import CachePrecision, HeadPrecision, Integers, Precision, Scales, container
from tailcut.sidecar import Sidecars


@dataclass(frozen=True, slots=True)
class Storage:
    """How a package stores its matrices, and fused.onnx its cache. `head`: output head and token embedding, tied or not."""

    layout: Layout = "bitmask"
    weights: Precision = "float32"
    head: Precision = "float32"
    activation_bits: int = 8  # of integer matrices, in the kernels
    kv_cache: CachePrecision = "float32"  # of fused.onnx
    fused: bool = True  # whether who opens the package knows fused.onnx

    @property
    def joins(self) -> bool:
        return self.layout == "bitmask"


def storage(
    layout: str, weights: str, head: str | None, activation_bits: int = 8, kv_cache: str | None = None
) -> Storage:
    """Checked settings. Without `head` it follows the weights, but integers are never below int8.

    Without `kv_cache` it is float32 beside float32 weights, else float16.
    """
    precision = check_precision(weights)
    chosen = check_layout(layout)
    if chosen == "dense" and precision in HALVES:
        raise InputError(f"{precision} weights exist only in the bitmask layout; leave out --layout dense")
    if activation_bits not in (8, 16):
        raise InputError(f"activations of integer weights have 8 or 16 bits, not {activation_bits}")
    own = check_precision(head, get_args(HeadPrecision), "head") if head is not None else None
    follows: Precision = "int8" if precision == "int4" else precision
    cache = kv_cache or ("float32" if precision == "float32" else "float16")
    if cache not in get_args(CachePrecision):
        raise InputError(f"unknown KV cache {cache!r}; choose one of {', '.join(get_args(CachePrecision))}")
    return Storage(chosen, precision, own or follows, activation_bits, cast("CachePrecision", cache))


@dataclass(frozen=True, slots=True)
class Written:
    """A matrix in the data file: its op, the names of its initializers, and their bytes."""

    op: str
    domain: str
    parts: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Linears:
    """Writes linears into a graph and remembers what each became. `over(graph)` writes the same ones into another."""

    graph: Graph
    weights: Weights
    storage: Storage
    plans: Mapping[str, LayerPlan] = field(default_factory=dict)  # of the source manifest
    sidecars: Sidecars = field(default_factory=Sidecars)  # of the source directory
    realised: dict[str, RealisedLayer] = field(default_factory=dict)
    written: dict[str, Written] = field(default_factory=dict)

    def over(self, graph: Graph) -> "Linears":
        """The same matrices for a second graph over the same data file."""
        return Linears(graph, self.weights, self.storage, self.plans, self.sidecars, self.realised, self.written)

    def apply(self, x: str, module: str, out: int, inputs: int) -> str:
        """x [..., in] -> x W^T + b [..., out]; the bias is added if the checkpoint has one."""
        return self.apply_joined(x, (module,), (out,), inputs)

    def apply_joined(self, x: str, modules: Sequence[str], sizes: Sequence[int], inputs: int) -> str:
        """x [..., in] -> the outputs of several modules side by side, [..., sum of sizes], from as few matrices."""
        pairs = zip(modules, sizes, strict=True)
        runs = [dict(run) for _, run in groupby(pairs, key=lambda pair: self.precision(pair[0]))]
        parts = [self._apply_one(x, tuple(run), tuple(run.values()), inputs) for run in runs]
        return parts[0] if len(parts) == 1 else self.graph.op("Concat", *parts, axis=-1)

    def precision(self, module: str) -> Precision:
        """How one module's matrix is stored."""
        bits = self.sidecars.bits(module)
        if bits is not None:
            return container(bits)
        return self.storage.head if module == self.weights.spec.head else self.storage.weights

    def _apply_one(self, x: str, modules: Sequence[str], sizes: Sequence[int], inputs: int) -> str:
        name = joined_name(modules)
        if name not in self.written:
            self._store(name, modules, sizes, inputs)
        y = self.multiply(x, name)
        if any(self.weights.has(module, "bias") for module in modules):
            biases = [self._bias(module, size) for module, size in zip(modules, sizes, strict=True)]
            y = self.graph.op("Add", y, self.graph.weight(f"{name}.bias", np.concatenate(biases)))
        return y

    def multiply(self, x: str, name: str, node: str | None = None) -> str:
        """x @ W^T for a matrix that is written already; the node is called `node`, else as the matrix."""
        known = self.written[name]
        parts = [self.graph.again(part) for part in known.parts]
        bits = {ACTIVATION_BITS: self.storage.activation_bits} if known.op in INTEGER_OPS else {}
        return self.graph.op(known.op, x, *parts, name=node or name, domain=known.domain, **bits)

    def write(self, name: str, form: Form) -> Written:
        """Store a form's parts and remember them."""
        names = form.names(name)
        for part, array in zip(names, form.parts.values(), strict=True):
            self.graph.weight(part, array)
        size = sum(array.nbytes for array in form.parts.values())
        self.written[name] = Written(form.op, form.domain, names, size)
        return self.written[name]

    def _store(self, name: str, modules: Sequence[str], sizes: Sequence[int], inputs: int) -> None:
        precision = self.precision(modules[0])
        if precision in ("int8", "int4"):
            pairs = zip(modules, sizes, strict=True)
            parts = [self._integers(module, size, inputs, precision) for module, size in pairs]
            q, scales = (np.concatenate(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True))
            self.write(name, integer_form(q, scales, self.storage.layout))
            return
        form, loss = encode(self._matrix(modules, sizes, inputs), self.storage.layout, precision)
        self.write(name, form)
        begin = 0
        for module, size in zip(modules, sizes, strict=True):
            rows = slice(begin, begin := begin + size)
            self.realised[module] = realised(self.plans.get(module), loss, rows, inputs)

    def _integers(self, module: str, size: int, inputs: int, precision: Precision) -> tuple[Integers, Scales]:
        """q [out, in] and scales of one module, from the source's own integers where it has them."""
        matrix = self.weights.matrix(module, size, inputs)
        if module not in self.sidecars:
            q, scales = quantise(matrix, precision)
            loss = rounding_loss(matrix, q, scales)
            self.realised[module] = realised(self.plans.get(module), loss, slice(0, size), inputs)
            return q, scales
        kept = self.sidecars.read(module)
        if not np.array_equal(float32(kept.stored(self.weights.dtype(module))), matrix):
            raise InputError(
                f"{module}: the stored weights are not those of its integers; compress the model again, or remove "
                "manifest.json to export the weights as they are"
            )
        self.realised[module] = replace(self.sidecars.layers[module], zeros=int((kept.q == 0).sum()))
        return kept.q, kept.scales

    def _matrix(self, modules: Sequence[str], sizes: Sequence[int], inputs: int) -> Matrix:
        parts = [self.weights.matrix(module, size, inputs) for module, size in zip(modules, sizes, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _bias(self, module: str, size: int) -> Matrix:
        if self.weights.has(module, "bias"):
            return self.weights.vector(module, "bias", size)
        return np.zeros(size, np.float32)


def joined_name(modules: Sequence[str]) -> str:
    """a.b.q, a.b.k, a.b.v -> a.b.q+k+v."""
    first, *rest = modules
    return JOIN.join([first, *(module.rpartition(".")[2] for module in rest)])


def realised(plan: LayerPlan | None, loss: Loss, rows: slice, inputs: int) -> RealisedLayer:
    """What the rows of one module became."""
    out = rows.stop - rows.start
    norm = float(loss.norm[rows].sum())
    error = (float(loss.error[rows].sum()) / norm) ** 0.5 if norm else 0.0
    return RealisedLayer(plan or LayerPlan(Dense()), (out, inputs), out * inputs - int(loss.kept[rows].sum()), error)
