"""One block without the units that go, and its output projections refitted to what the whole block computed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from tailcut.bitmask import Array
from tailcut.compress.blocks import Stream, watched
from tailcut.compress.resident import Weights, as_array, as_tensor, put
from tailcut.compress.skeleton import shaped_block
from tailcut.compress.statistics import Accumulator
from tailcut.compress.structured._groups import Group, Kind, kept_indices, storage_axis
from tailcut.errors import InputError

Arrays = dict[str, Array]  # parameter name inside a block -> array as it is stored


@contextmanager
def resident(
    weights: Weights, index: int, settings: Mapping[str, int], arrays: Mapping[str, Array]
) -> Iterator[nn.Module]:
    """Block `index` built with these settings, with these parameters, on the device."""
    block = shaped_block(weights.skeleton, index, settings)
    for name, array in arrays.items():
        put(block, name, weights.to_device(array))
    yield block.to(weights.device)


def cut(
    block: nn.Module, arrays: Mapping[str, Array], groups: Mapping[Kind, Group], kept: Mapping[Kind, Tensor]
) -> Arrays:
    """A block's parameters without the units that are not in `kept` (ascending unit numbers by kind), biases with them.

    `block` names the modules; its own weights are not read.
    """
    smaller = dict(arrays)
    for name, axes in kept_indices(groups, kept).items():
        module = block.get_submodule(name)
        for axis, places in axes.items():
            weight = f"{name}.weight"
            smaller[weight] = np.take(smaller[weight], places.numpy(), axis=storage_axis(module, axis))
            if axis == "rows" and f"{name}.bias" in smaller:
                smaller[f"{name}.bias"] = np.take(smaller[f"{name}.bias"], places.numpy(), axis=0)
    return smaller


def refit(weight: Tensor, gram: Tensor, kept: Tensor, ridge: float) -> Tensor:
    """Columns that stay, moved so that they also say what the removed ones said: float32 [out, n].

    weight [out, in] float32, gram = X^T X [in, in] of the inputs X that all columns see, kept [n] int64. The solution of
    min over V of ||X_K V^T - X W^T||^2 + lambda ||V - W_K||^2, lambda = ridge x mean diagonal of the kept Gram: least
    squares that falls back to the columns as they are where the text says nothing of them.
    """
    full, matrix = gram.double(), weight.double()
    gone = torch.ones(len(full), dtype=torch.bool, device=full.device)
    gone[kept] = False
    inner = full[kept][:, kept]
    strength = ridge * float(inner.diagonal().mean())
    if strength <= 0.0 or not bool(gone.any()):
        return weight[:, kept]
    inner.diagonal().add_(strength)
    lost = matrix[:, gone] @ full[gone][:, kept]  # what the kept inputs would have to make up for
    moved: Tensor = torch.linalg.solve(inner, lost.T)
    return (matrix[:, kept] + moved.T).float()


class BlockCutter:
    """Cuts the kinds of one block one after the other, each seeing inputs that the earlier cuts leave."""

    def __init__(self, weights: Weights, index: int, groups: Mapping[Kind, Group], width_key: str) -> None:
        self._weights, self._index, self._groups, self._width_key = weights, index, groups, width_key
        self.names = weights.block_tensors(index)  # parameter -> checkpoint tensor
        self.arrays: Arrays = {name: weights.checkpoint.read(tensor) for name, tensor in self.names.items()}
        self.settings: dict[str, int] = {}

    def cut(self, kind: Kind, kept: Tensor, stream: Stream | None, ridge: float, probe: bool) -> None:
        """Leave only these units. `stream`, in front of the block, stays there; None: no refitting, no probing.

        probe: compare the cut block with the whole one whose removed units are silenced; InputError when they differ.
        """
        group, module = self._groups[kind], self._weights.skeleton.blocks[self._index]
        before, settings = self.arrays, dict(self.settings)
        gram = self._gram(group, stream) if stream is not None and ridge > 0 else None
        self.arrays = cut(module, before, {kind: group}, {kind: kept})
        self.settings |= group.settings(len(kept), self._width_key)
        if probe and stream is not None:
            silent = self._silenced(group, before, kept)
            self._require_same(kind, stream, (settings, silent), (self.settings, self.arrays))
        if gram is not None:
            self._refit(group, before, kept, gram, ridge)

    def advance(self, stream: Stream) -> None:
        """The stream through the block as it is now."""
        with resident(self._weights, self._index, self.settings, self.arrays) as block:
            stream.advance(self._index, block)

    @property
    def tensors(self) -> dict[str, Array]:
        """The block's parameters by checkpoint name."""
        return {self.names[name]: array for name, array in self.arrays.items()}

    def _gram(self, group: Group, stream: Stream) -> Tensor:
        """X^T X of what the group's down projection reads, but for a factor."""
        columns = group.units * group.down.channels
        sums = Accumulator(columns, "hessian", self._weights.device)
        with (
            resident(self._weights, self._index, self.settings, self.arrays) as block,
            watched(block, {group.down.linear: lambda inputs: sums.add(inputs, 1)}),
        ):
            stream.watch(self._index, block)
        gram = sums.result().hessian
        if gram is None or not bool(gram.isfinite().all()):
            raise InputError(f"block {self._index}: inputs of {group.down.linear} overflow on the calibration text")
        return gram

    def _refit(self, group: Group, before: Arrays, kept: Tensor, gram: Tensor, ridge: float) -> None:
        name = f"{group.down.linear}.weight"
        turned = storage_axis(self._module(group), "columns") == 0
        old = as_tensor(before[name]).to(gram.device).float()
        places = group.down.indices(kept).to(gram.device)
        new = refit(old.T if turned else old, gram, places, ridge)
        stored = (new.T if turned else new).to(as_tensor(before[name][:0]).dtype)
        if not bool(stored.isfinite().all()):
            raise InputError(
                f"block {self._index}: {name}: refitted weights overflow {before[name].dtype}; pass --no-refit"
            )
        self.arrays[name] = as_array(stored).astype(before[name].dtype, copy=False)

    def _silenced(self, group: Group, arrays: Arrays, kept: Tensor) -> Arrays:
        """The whole block, the columns that read the removed units zero: what a unit computes then reaches nothing."""
        name = f"{group.down.linear}.weight"
        axis = storage_axis(self._module(group), "columns")
        alive = np.zeros(arrays[name].shape[axis], bool)
        alive[group.down.indices(kept).numpy()] = True
        shape = (-1, 1) if axis == 0 else (1, -1)
        return arrays | {name: np.where(alive.reshape(shape), arrays[name], np.zeros((), arrays[name].dtype))}

    def _require_same(
        self, kind: Kind, stream: Stream, a: tuple[Mapping[str, int], Arrays], b: tuple[Mapping[str, int], Arrays]
    ) -> None:
        first = Stream(stream.batches[:1], stream.tape, stream.device)
        out = []
        for settings, arrays in (a, b):
            one = first.again()
            with resident(self._weights, self._index, settings, arrays) as block:
                one.advance(self._index, block)
            out.append(one.batches[0].float())
        # both sum the same products in another order; bfloat16 keeps 8 bits of a sum
        limit = (1e-3 if self._weights.dtype == torch.float32 else 5e-2) * float(out[0].abs().max())
        if not float((out[0] - out[1]).abs().max()) <= limit:
            raise InputError(
                f"block {self._index}: without some {kind} it computes otherwise than with them silenced; this family "
                "uses them in a way that tailcut does not know, cut the other kind alone (--units)"
            )

    def _module(self, group: Group) -> nn.Module:
        return self._weights.skeleton.blocks[self._index].get_submodule(group.down.linear)
