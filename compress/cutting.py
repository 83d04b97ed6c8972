"""One decoder block cut: collect what its linears see, prune each, give back the tensors to be stored."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tailcut.allocation import Allocation, Dense, LayerPlan
from tailcut.bitmask import Array
from tailcut.checkpoint import float32
from tailcut.compress.blocks import Stream
from tailcut.compress.discovery import Linear, read_weight
from tailcut.compress.masks import require_plan
from tailcut.compress.pruners import Pruner
from tailcut.compress.resident import Weights
from tailcut.compress.statistics import Accumulator, Needs, Statistics
from tailcut.errors import InputError


def cut_block(
    weights: Weights,
    index: int,
    linears: Sequence[Linear],
    allocation: Allocation,
    pruner: Pruner,
    stream: Stream | None,
) -> dict[str, Array]:
    """Every tensor of block `index` as it is to be stored (checkpoint name -> array in the source's dtype).

    `stream` stands in front of the block and stays there; None when the pruner needs no statistics.
    """
    tensors = {name: weights.checkpoint.read(name) for name in weights.block_tensors(index).values()}
    cut = [linear for linear in linears if not isinstance(allocation.plans[linear.name].pattern, Dense)]
    seen = _collect(weights, index, cut, pruner.NEEDS, stream)
    for linear in cut:
        tensors[linear.tensor] = _cut(
            weights, linear, allocation.plans[linear.name], pruner, seen.pop(linear.name, Statistics())
        )
    return tensors


def _cut(weights: Weights, linear: Linear, plan: LayerPlan, pruner: Pruner, stats: Statistics) -> Array:
    """One matrix pruned, checked against its plan and rounded to its stored dtype and layout."""
    stored = read_weight(weights.checkpoint, linear)
    dense = torch.from_numpy(float32(stored).copy()).to(weights.device)
    try:
        pruned = pruner.prune(dense, plan.pattern, stats)
    except InputError as error:
        raise InputError(f"{linear.name}: {error}") from error
    require_plan(linear.name, dense, pruned, plan.pattern)
    # adding 0.0 turns -0.0 into 0.0, so that every zero is a zero to the bitmask format as well
    rounded: Array = (pruned + 0.0).cpu().numpy().astype(stored.dtype)
    if not np.isfinite(float32(rounded)).all():
        raise InputError(f"{linear.name}: pruned weights overflow {stored.dtype}; convert the model to bfloat16 first")
    return np.ascontiguousarray(rounded.T if linear.transposed else rounded)


def _collect(
    weights: Weights, index: int, linears: Sequence[Linear], needs: Needs, stream: Stream | None
) -> dict[str, Statistics]:
    """Statistics of every linear of the block from one pass of the dense block over the stream."""
    if stream is None or not linears:
        return {}
    sums = {linear.name: Accumulator(linear.shape[1], needs, weights.device) for linear in linears}
    prefix = weights.skeleton.block_prefix(index)
    with weights.block(index) as block, _watched(block, {n.removeprefix(prefix): s for n, s in sums.items()}):
        stream.watch(index, block)
    for name, accumulator in sums.items():
        if accumulator.sequences == 0:
            raise InputError(f"{name}: saw no calibration input; this family calls its linears in an unknown way")
    return {name: accumulator.result() for name, accumulator in sums.items()}


@contextmanager
def _watched(block: nn.Module, sums: Mapping[str, Accumulator]) -> Iterator[None]:
    """Feed the inputs of each named linear to its accumulator while the context lasts."""

    def hook(accumulator: Accumulator) -> Any:  # noqa: ANN401  (torch's hook type)
        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            accumulator.add(inputs[0], int(inputs[0].shape[0]) if inputs[0].ndim > 2 else 1)

        return add

    handles = [block.get_submodule(name).register_forward_pre_hook(hook(item)) for name, item in sums.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
