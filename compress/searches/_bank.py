"""Pruned weights of every matrix at the levels that were asked for so far.

A matrix is pruned with statistics of the dense model, once a level, and kept as it would be stored. What no longer fits
into `limit` bytes goes, the longest unused first, and is pruned again when it is asked for again: memory is bounded,
whatever the model, and only time is lost.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from tailcut.allocation import Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import Linear, read_weight
from tailcut.compress.pruners import Pruner
from tailcut.compress.resident import as_tensor
from tailcut.compress.statistics import Statistics, exact_float32
from tailcut.errors import InputError


class Bank:
    """Level l of a matrix loses l * step of its weights; level 0 is the dense matrix."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        linears: Mapping[str, Linear],
        pruner: Pruner,
        statistics: Mapping[str, Statistics],
        step: float,
        device: torch.device,
        limit: int,
    ) -> None:
        self._checkpoint, self._linears, self._pruner, self._statistics = checkpoint, linears, pruner, statistics
        self._step, self._device, self._limit = step, device, limit
        self._kept: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._bytes = 0
        self.pruned = 0  # how many times a matrix was pruned

    def weight(self, name: str, level: int) -> Tensor:
        """The matrix in its stored dtype and layout, on the device. Not to be changed."""
        key = (name, level)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = self._prune(self._linears[name], level)
        self._kept[key] = made
        self._bytes += made.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return made

    def _prune(self, linear: Linear, level: int) -> Tensor:
        stored = as_tensor(read_weight(self._checkpoint, linear))
        self._checkpoint.release()
        dense = stored.to(self._device).float()
        if level > 0:
            statistics = _on(self._statistics.get(linear.name, Statistics()), self._device)
            try:
                with exact_float32():
                    dense = self._pruner.prune(dense, Unstructured(min(1.0, level * self._step)), statistics)
            except InputError as error:
                raise InputError(f"{linear.name}: {error}") from error
            self.pruned += 1
        return (dense.T if linear.transposed else dense).to(stored.dtype).contiguous()


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
