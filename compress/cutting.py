"""One decoder block cut: collect what its linears see, prune and quantise each, give back what is to be stored."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from tailcut.allocation import Allocation, Dense, LayerPlan
from tailcut.bitmask import Array
from tailcut.checkpoint import float32
from tailcut.compress.blocks import Stream
from tailcut.compress.discovery import Linear, read_weight
from tailcut.compress.masks import require_groups, require_plan
from tailcut.compress.pruners import Pruner
from tailcut.compress.quantisers import Quantiser
from tailcut.compress.resident import Weights
from tailcut.compress.statistics import Accumulator, Needs, Statistics, exact_float32
from tailcut.errors import InputError
from tailcut.sidecar import Errors, Integral, tensors_of

UNTOUCHED: Final = LayerPlan(Dense())


@dataclass(frozen=True, slots=True)
class Method:
    """How matrices are cut and rounded. `quantiser` None: no plan has bits. `clip`: see `Quantiser`."""

    pruner: Pruner
    quantiser: Quantiser | None = None
    clip: bool = True

    def prunes(self, plan: LayerPlan) -> bool:
        """Whether the pruner is asked: not for dense plans, nor where the quantiser prunes in its own sweep."""
        own = plan.bits is not None and self.quantiser is not None and self.quantiser.PRUNES
        return not isinstance(plan.pattern, Dense) and not own

    def needs(self, plan: LayerPlan) -> frozenset[Needs]:
        """What one matrix's statistics must hold; empty: nothing."""
        wanted: set[Needs] = {self.pruner.NEEDS} if self.prunes(plan) else set()
        wanted |= {self.quantiser.NEEDS} if plan.bits is not None and self.quantiser is not None else set()
        return frozenset(wanted - {"nothing"})


@dataclass(frozen=True, slots=True)
class Cut:
    """What a block becomes: its tensors in the source's dtypes, and the sidecar of its quantised matrices."""

    tensors: Mapping[str, Array]
    sidecar: Mapping[str, Array] = field(default_factory=dict)


def cut_block(
    weights: Weights,
    index: int,
    linears: Sequence[Linear],
    allocation: Allocation,
    method: Method,
    stream: Stream | None,
) -> Cut:
    """Every tensor of block `index` as it is to be stored (checkpoint name -> array in the source's dtype).

    `stream` stands in front of the block and stays there; None when no statistics are needed.
    """
    tensors = {name: weights.checkpoint.read(name) for name in weights.block_tensors(index).values()}
    sidecar: dict[str, Array] = {}
    cut = [linear for linear in linears if allocation.plans[linear.name] != UNTOUCHED]
    needs = {linear: method.needs(allocation.plans[linear.name]) for linear in cut}
    seen = _collect(weights, index, {linear: wanted for linear, wanted in needs.items() if wanted}, stream)
    for linear in cut:
        plan, stats = allocation.plans[linear.name], seen.pop(linear.name, Statistics())
        tensors[linear.tensor], integers = _cut(weights, linear, plan, method, stats)
        sidecar |= integers
    return Cut(tensors, sidecar)


def _cut(
    weights: Weights, linear: Linear, plan: LayerPlan, method: Method, stats: Statistics
) -> tuple[Array, dict[str, Array]]:
    """One matrix as it is stored, in its own dtype and layout, and its part of the sidecar."""
    stored = read_weight(weights.checkpoint, linear)
    dense = torch.from_numpy(float32(stored).copy()).to(weights.device)
    sidecar: dict[str, Array] = {}
    try:
        pruned = method.pruner.prune(dense, plan.pattern, stats) if method.prunes(plan) else dense
        if method.prunes(plan):
            require_plan(linear.name, dense, pruned, plan.pattern)
        if plan.bits is not None:
            pruned, sidecar = _quantise(linear.name, dense, pruned, plan, method, stats)
    except InputError as error:
        raise error if str(error).startswith(linear.name) else InputError(f"{linear.name}: {error}") from error
    # adding 0.0 turns -0.0 into 0.0, so that every zero is a zero to the bitmask format as well
    rounded: Array = (pruned + 0.0).cpu().numpy().astype(stored.dtype)
    if not np.isfinite(float32(rounded)).all():
        raise InputError(f"{linear.name}: cut weights overflow {stored.dtype}; convert the model to bfloat16 first")
    return np.ascontiguousarray(rounded.T if linear.transposed else rounded), sidecar


def _quantise(
    name: str, dense: Tensor, pruned: Tensor, plan: LayerPlan, method: Method, stats: Statistics
) -> tuple[Tensor, dict[str, Array]]:
    """The matrix at its bits, exactly q * scale in float32, and what the sidecar stores of it."""
    if plan.bits is None or method.quantiser is None:
        raise ValueError(f"{name}: no bits or no quantiser")
    left = plan.pattern if method.quantiser.PRUNES else Dense()
    made = method.quantiser.quantise(pruned, left, plan.bits, stats, method.clip)
    finished = made.dense()
    _require_zeros(name, pruned, finished, plan, method.quantiser)
    kept = dense.masked_fill(finished == 0, 0.0) if method.quantiser.PRUNES else pruned
    integral = Integral(made.q.cpu().numpy(), made.scales.cpu().numpy(), plan.bits)
    return finished, tensors_of(name, integral, _errors(dense, kept, finished, stats))


def _require_zeros(name: str, before: Tensor, after: Tensor, plan: LayerPlan, quantiser: Quantiser) -> None:
    """Rounding adds zeros and takes none; one that prunes has made the plan's."""
    if bool((after != 0)[before == 0].any()):
        raise InputError(f"{name}: the quantiser filled a weight that was zero; please report this")
    if quantiser.PRUNES:
        require_groups(name, after, plan.pattern)
        planned, zeros = plan.pattern.sparsity * after.numel() - after.shape[0], int((after == 0).sum())
        if zeros < planned:
            raise InputError(
                f"{name}: {zeros} zeros, the plan {plan.pattern} asks for {planned:.0f}; please report this"
            )


def _errors(dense: Tensor, kept: Tensor, finished: Tensor, stats: Statistics) -> Errors:
    """See `RealisedLayer`: against the weights that are kept, and of the outputs against the dense matrix's."""
    norm = float(kept.double().norm())
    error = float((finished - kept).double().norm()) / norm if norm else 0.0
    if stats.hessian is None:
        return Errors(error, None)
    with exact_float32():
        lost, whole = (_energy(matrix, stats.hessian.float()) for matrix in (finished - dense, dense))
    return Errors(error, max(0.0, lost) / whole if whole > 0 else 0.0)


def _energy(matrix: Tensor, hessian: Tensor) -> float:
    """tr(M H M^T): squared norm of the outputs."""
    return float(((matrix @ hessian) * matrix).sum(dtype=torch.float64))


def _collect(
    weights: Weights, index: int, needs: Mapping[Linear, frozenset[Needs]], stream: Stream | None
) -> dict[str, Statistics]:
    """Statistics of the block's linears from one pass of the dense block over the stream."""
    if stream is None or not needs:
        return {}
    sums = {
        linear.name: tuple(Accumulator(linear.shape[1], one, weights.device) for one in sorted(wanted))
        for linear, wanted in needs.items()
    }
    prefix = weights.skeleton.block_prefix(index)
    with weights.block(index) as block, _watched(block, {n.removeprefix(prefix): s for n, s in sums.items()}):
        stream.watch(index, block)
    for name, accumulators in sums.items():
        if accumulators[0].sequences == 0:
            raise InputError(f"{name}: saw no calibration input; this family calls its linears in an unknown way")
    return {name: _together([one.result() for one in accumulators]) for name, accumulators in sums.items()}


def _together(parts: Sequence[Statistics]) -> Statistics:
    """What any of them holds; what several hold is the same."""
    values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Statistics)}
    return Statistics(**{name: next((one for one in found if one is not None), None) for name, found in values.items()})


@contextmanager
def _watched(block: nn.Module, sums: Mapping[str, Sequence[Accumulator]]) -> Iterator[None]:
    """Feed the inputs of each named linear to its accumulators while the context lasts."""

    def hook(accumulators: Sequence[Accumulator]) -> Any:  # noqa: ANN401  (torch's hook type)
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for accumulator in accumulators:
                accumulator.add(inputs[0], int(inputs[0].shape[0]) if inputs[0].ndim > 2 else 1)

        return add

    handles = [block.get_submodule(name).register_forward_pre_hook(hook(item)) for name, item in sums.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
