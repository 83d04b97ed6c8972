"""Swap the linears of a Hugging Face model for sparse ones, as tailcut's manifest plans or as their zeros say.

    report = sparsify_model(model, directory)     # a directory that `tailcut compress` wrote
    report = sparsify_model(model)                # every linear that is 2:4 or has enough zeros
    print(report)

The model's weights must be the cut ones already (loaded from that directory); nothing is pruned here. Matrices that
the plan leaves dense stay as they are, and the report says why.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from tailcut.allocation import NM, Dense, LayerPlan
from tailcut.errors import InputError
from tailcut.kernels.gpu.modules import Kind, SparseLinear
from tailcut.manifest import Manifest, read_manifest

Choose = Callable[[str, nn.Linear], bool]
LEAST_SPARSITY: Final = 0.45  # fewer zeros than this and an unstructured layout is hardly smaller than the matrix
_TWO_FOUR: Final = NM(2, 4)


@dataclass(frozen=True, slots=True)
class Swap:
    """What became of one linear: `kind` is that of its layout or "dense"; `reason` says why it stayed dense."""

    name: str
    kind: str
    bytes_before: int
    bytes_after: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What `sparsify_model` did, in the model's order."""

    swaps: tuple[Swap, ...]

    @property
    def swapped(self) -> tuple[Swap, ...]:
        return tuple(swap for swap in self.swaps if swap.kind != "dense")

    @property
    def bytes_before(self) -> int:
        return sum(swap.bytes_before for swap in self.swaps)

    @property
    def bytes_after(self) -> int:
        return sum(swap.bytes_after for swap in self.swaps)

    def __str__(self) -> str:
        kinds = sorted({swap.kind for swap in self.swapped})
        counts = ", ".join(f"{sum(swap.kind == kind for swap in self.swaps)} {kind}" for kind in kinds) or "none"
        return (
            f"{len(self.swapped)} of {len(self.swaps)} linears swapped ({counts}); their weights take "
            f"{self.bytes_after / 1e6:.1f} MB instead of {self.bytes_before / 1e6:.1f} MB"
        )


def sparsify_model(
    model: nn.Module,
    wanted: Manifest | Path | Choose | None = None,
    *,
    kind: Kind | None = None,
    bits: int = 16,
    least_sparsity: float = LEAST_SPARSITY,
) -> SwapReport:
    """Replace linears of `model`, in place, by `SparseLinear` of the same values (`bits` 8 and 4 round them).

    `wanted`: a manifest or its directory (the layers it lists, as planned), a function (name, linear) -> bool, or None
    for all linears. `kind` None takes 2:4 where the weight is, else unstructured where `least_sparsity` of it are zeros.
    """
    swaps = []
    for name, linear, plan in _wanted(model, wanted):
        chosen, reason = _choose(linear, plan, kind, least_sparsity)
        if chosen is None:
            swaps.append(Swap(name, "dense", linear.weight.nbytes, linear.weight.nbytes, reason))
            continue
        sparse = SparseLinear.from_linear(linear, chosen, bits, name)
        sparse.train(linear.training)
        model.set_submodule(name, sparse)
        swaps.append(Swap(name, sparse.layout.kind, linear.weight.nbytes, sparse.layout.nbytes))
    return SwapReport(tuple(swaps))


def is_two_four(weight: Tensor) -> bool:
    """Whether every four neighbouring columns of weight [out, in] hold at most two non-zeros."""
    if weight.ndim != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight.reshape(len(weight), -1, 4) != 0).sum(-1, dtype=torch.int8) <= 2).all())


def _wanted(
    model: nn.Module, wanted: Manifest | Path | Choose | None
) -> Iterator[tuple[str, nn.Linear, LayerPlan | None]]:
    """(name, linear, plan) of what is asked for; a manifest's names must all be linears of the model."""
    if isinstance(wanted, Path):
        wanted = read_manifest(wanted)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if isinstance(wanted, Manifest):
        missing = [name for name in wanted.layers if name not in linears]
        if missing:
            raise InputError(f"{missing[0]}: in the manifest, but no linear of this model ({len(missing)} such layers)")
        for name, layer in wanted.layers.items():
            if tuple(linears[name].weight.shape) != layer.shape:
                found = list(linears[name].weight.shape)
                raise InputError(f"{name}: is {found} in the model, {list(layer.shape)} in the manifest")
            yield name, linears[name], layer.plan
        return
    for name, linear in linears.items():
        if wanted is None or wanted(name, linear):
            yield name, linear, None


def _choose(
    linear: nn.Linear, plan: LayerPlan | None, kind: Kind | None, least_sparsity: float
) -> tuple[Kind | None, str]:
    """The layout for a linear, or None and the reason."""
    if plan is not None and isinstance(plan.pattern, Dense):
        return None, "the plan leaves it dense"
    if kind is not None:
        return kind, ""
    if plan is not None and plan.pattern == _TWO_FOUR:
        return "two_four", ""
    weight = linear.weight.detach()
    if plan is None and is_two_four(weight):
        return "two_four", ""
    sparsity = 1.0 - int(weight.count_nonzero()) / max(1, weight.numel())
    if sparsity < least_sparsity:
        return None, f"{sparsity:.0%} zeros, fewer than the {least_sparsity:.0%} that pay"
    return "unstructured", ""
