"""One decoder block cut: collect what its linears see, prune and quantise each, give back what is to be stored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from tailcut.allocation import Allocation, Dense, LayerPlan
from tailcut.bitmask import Array
from tailcut.compress.blocks import Stream
from tailcut.compress.collecting import collect
from tailcut.compress.discovery import Linear, read_weight
from tailcut.compress.masks import require_groups, require_plan
from tailcut.compress.pruners import Pruner
from tailcut.compress.quantisers import Quantiser
from tailcut.compress.quantisers._grid import Quantised
from tailcut.compress.resident import Weights, as_array, as_tensor
from tailcut.compress.statistics import Needs, Statistics, exact_float32
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

    def prune(self, weight: Tensor, plan: LayerPlan, stats: Statistics) -> Tensor:
        """weight [out, in] float32 -> what the pruner makes of it, or the weight itself where it is not asked."""
        return self.pruner.prune(weight, plan.pattern, stats) if self.prunes(plan) else weight

    def quantise(self, pruned: Tensor, plan: LayerPlan, stats: Statistics) -> Quantised:
        """pruned [out, in] float32, as `prune` gave it -> integers and scales at the plan's bits."""
        if plan.bits is None or self.quantiser is None:
            raise ValueError(f"no bits in {plan}, or no quantiser")
        left = plan.pattern if self.quantiser.PRUNES else Dense()
        return self.quantiser.quantise(pruned, left, plan.bits, stats, self.clip)


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
    asked = {linear: wanted for linear, wanted in needs.items() if wanted}
    seen = collect(weights, index, asked, stream) if stream is not None and asked else {}
    for linear in cut:
        plan, stats = allocation.plans[linear.name], seen.pop(linear.name, Statistics())
        tensors[linear.tensor], integers = _cut(weights, linear, plan, method, stats)
        sidecar |= integers
    return Cut(tensors, sidecar)


def cut_blocks(
    weights: Weights, linears: Sequence[Linear], allocation: Allocation, method: Method, calibration: Stream | None
) -> Iterator[Cut]:
    """Every block as `cut_block` makes it, in order; `calibration` goes from block 0 through the blocks as they are cut."""
    last = len(weights.skeleton.blocks) - 1
    for index in range(last + 1):
        mine = [linear for linear in linears if linear.block == index]
        cut = cut_block(weights, index, mine, allocation, method, calibration)
        yield cut
        if calibration is not None and index < last:
            with weights.block(index, cut.tensors) as block:
                calibration.advance(index, block)


def _cut(
    weights: Weights, linear: Linear, plan: LayerPlan, method: Method, stats: Statistics
) -> tuple[Array, dict[str, Array]]:
    """One matrix as it is stored, in its own dtype and layout, and its part of the sidecar."""
    stored = read_weight(weights.checkpoint, linear)
    dense = as_tensor(stored).to(weights.device).float()
    sidecar: dict[str, Array] = {}
    try:
        pruned = method.prune(dense, plan, stats)
        if method.prunes(plan):
            require_plan(linear.name, dense, pruned, plan.pattern)
        if plan.bits is not None:
            pruned, sidecar = _quantise(linear.name, dense, pruned, plan, method, stats)
    except InputError as error:
        raise error if str(error).startswith(linear.name) else InputError(f"{linear.name}: {error}") from error
    # adding 0.0 turns -0.0 into 0.0, so that every zero is a zero to the bitmask format as well
    turned = (pruned.T if linear.transposed else pruned) + 0.0
    rounded = turned.to(as_tensor(stored[:0]).dtype)
    if not bool(rounded.isfinite().all()):
        raise InputError(f"{linear.name}: cut weights overflow {stored.dtype}; convert the model to bfloat16 first")
    return as_array(rounded).astype(stored.dtype, copy=False), sidecar


def _quantise(
    name: str, dense: Tensor, pruned: Tensor, plan: LayerPlan, method: Method, stats: Statistics
) -> tuple[Tensor, dict[str, Array]]:
    """The matrix at its bits, exactly q * scale in float32, and what the sidecar stores of it."""
    if plan.bits is None or method.quantiser is None:
        raise ValueError(f"{name}: no bits or no quantiser")
    made = method.quantise(pruned, plan, stats)
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
