"""Cut weights of every matrix at the levels that were asked for so far.

A matrix is pruned and rounded with statistics of the dense model, once a level, and kept as it would be stored. What no
longer fits into `limit` bytes goes, the longest unused first, and is cut again when it is asked for again: memory is
bounded, whatever the model, and only time is lost. A pruner may offer `prune_levels` (sparsegpt does), which takes
several sparsities of one matrix in one sweep.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

import torch
from torch import Tensor

from tailcut.allocation import LayerPlan
from tailcut.checkpoint import Checkpoint
from tailcut.compress.cutting import Method
from tailcut.compress.discovery import Linear, read_weight
from tailcut.compress.resident import as_tensor
from tailcut.compress.searches._ladder import Ladder
from tailcut.compress.statistics import Statistics, exact_float32
from tailcut.errors import InputError

_TOGETHER: Final = 8  # levels pruned in one sweep


class Bank:
    """Matrices at the levels of a ladder, made by a method."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        linears: Mapping[str, Linear],
        method: Method,
        statistics: Mapping[str, Statistics],
        ladder: Ladder,
        device: torch.device,
        limit: int,
    ) -> None:
        self._checkpoint, self._linears, self._method, self._statistics = checkpoint, linears, method, statistics
        self._ladder, self._device, self._limit = ladder, device, limit
        self._kept: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._bytes = 0

    def weight(self, name: str, level: int) -> Tensor:
        """The matrix in its stored dtype and layout, on the device. Not to be changed."""
        key = (name, level)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._make(self._linears[name], self._together(name, level))
        for other, weight in made.items():
            self._keep((name, other), weight)
        self._keep(key, made[level])  # last, so that it is the last to go
        return made[level]

    def _together(self, name: str, level: int) -> list[int]:
        """The levels to cut now: this one, and on a GPU its neighbours too if the pruner has a way to do several at once."""
        first = level - level % _TOGETHER
        several = self._ladder.kind == "sparsity" and hasattr(self._method.pruner, "prune_levels")
        if level == 0 or self._device.type != "cuda" or not several:
            return [level]
        near = range(max(1, first), min(first + _TOGETHER, len(self._ladder.plans)))
        return [one for one in near if (name, one) not in self._kept]

    def _keep(self, key: tuple[str, int], weight: Tensor) -> None:
        if key not in self._kept:
            self._kept[key] = weight
            self._bytes += weight.nbytes
        self._kept.move_to_end(key)
        while self._bytes > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes

    def _make(self, linear: Linear, levels: list[int]) -> dict[int, Tensor]:
        stored = as_tensor(read_weight(self._checkpoint, linear))
        self._checkpoint.release()
        found = self._cut(linear.name, stored.to(self._device).float(), levels)
        turned = {level: weight.T if linear.transposed else weight for level, weight in found.items()}
        return {level: weight.to(stored.dtype).contiguous() for level, weight in turned.items()}

    def _cut(self, name: str, dense: Tensor, levels: list[int]) -> dict[int, Tensor]:
        statistics = _on(self._statistics.get(name, Statistics()), self._device)
        plans = [self._ladder.plans[level] for level in levels]
        several = getattr(self._method.pruner, "prune_levels", None)
        try:
            with exact_float32():
                if several is not None and len(levels) > 1:
                    sparsities = [plan.pattern.sparsity for plan in plans]
                    return dict(zip(levels, several(dense, sparsities, statistics), strict=True))
                made = [self._as_planned(dense, plan, statistics) for plan in plans]
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        return dict(zip(levels, made, strict=True))

    def _as_planned(self, dense: Tensor, plan: LayerPlan, statistics: Statistics) -> Tensor:
        if plan.bits is None and plan.pattern.sparsity == 0.0:
            return dense
        pruned = self._method.prune(dense, plan, statistics)
        return pruned if plan.bits is None else self._method.quantise(pruned, plan, statistics).dense()


def bytes_of(statistics: Mapping[str, Statistics]) -> int:
    """Memory of statistics, those that matrices share counted once."""
    tensors = {id(tensor): tensor for one in statistics.values() for tensor in _tensors(one).values()}
    return sum(tensor.nbytes for tensor in tensors.values())


def moved(statistics: Mapping[str, Statistics], device: torch.device) -> dict[str, Statistics]:
    """Statistics on another device, shared as they were."""
    copies = {id(one): _on(one, device) for one in statistics.values()}
    return {name: copies[id(one)] for name, one in statistics.items()}


def _on(statistics: Statistics, device: torch.device) -> Statistics:
    return Statistics(**{name: tensor.to(device) for name, tensor in _tensors(statistics).items()})


def _tensors(statistics: Statistics) -> dict[str, Tensor]:
    values = {item.name: getattr(statistics, item.name) for item in fields(Statistics)}
    return {name: tensor for name, tensor in values.items() if tensor is not None}
