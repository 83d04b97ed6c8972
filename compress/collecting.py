"""What the linears of one block see of the calibration text, from one pass of the dense block.

Linears that are handed the same tensor (q, k and v; gate and up) share their sums: a Hessian is the dearest thing here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial

from torch import Tensor

from tailcut.compress.blocks import Stream, watched
from tailcut.compress.discovery import Linear
from tailcut.compress.resident import Weights
from tailcut.compress.statistics import Accumulator, Needs, Statistics
from tailcut.errors import InputError


def collect(
    weights: Weights, index: int, needs: Mapping[Linear, frozenset[Needs]], stream: Stream
) -> dict[str, Statistics]:
    """Statistics of these linears of block `index`, by module name; the stream in front of the block stays there."""
    sums = {
        linear.name: [Accumulator(linear.shape[1], one, weights.device) for one in sorted(wanted)]
        for linear, wanted in needs.items()
    }
    prefix, inputs = weights.skeleton.block_prefix(index), SharedSums(sums)
    receivers = {name.removeprefix(prefix): partial(inputs.add, name) for name in sums}
    with weights.block(index) as block, watched(block, receivers):
        stream.watch(index, block)
    return inputs.result()


class SharedSums:
    """Running sums by linear; from its first input on, a linear that gets another's tensor leaves the adding to that one.

    Two linears share only what both asked for, and only while it is the same tensor object every time: anything else is
    refused, since the sums of the one would no longer be those of the other.
    """

    def __init__(self, sums: Mapping[str, Sequence[Accumulator]]) -> None:
        self._sums = sums
        self._leaders: dict[str, str] = {}
        self._latest: dict[str, Tensor] = {}

    def add(self, name: str, inputs: Tensor) -> None:
        """The next inputs [..., in] of one linear."""
        leader = self._leaders.get(name) or self._leaders.setdefault(name, self._same(name, inputs))
        if leader == name:
            self._latest[name] = inputs
            for one in self._sums[name]:
                one.add(inputs, int(inputs.shape[0]) if inputs.ndim > 2 else 1)
        elif self._latest[leader] is not inputs:
            raise InputError(f"{name}: shares its input with {leader} at times only; this family is not handled")

    def result(self) -> dict[str, Statistics]:
        """Statistics by linear, one object for those that share; InputError where one saw nothing."""
        for name in self._sums:
            if name not in self._leaders:
                raise InputError(f"{name}: saw no calibration input; this family calls its linears in an unknown way")
        self._latest.clear()
        own = {name: _together([one.result() for one in self._sums[name]]) for name in set(self._leaders.values())}
        return {name: own[self._leaders[name]] for name in self._sums}

    def _same(self, name: str, inputs: Tensor) -> str:
        """The linear that was just given this very tensor and keeps the same sums, or `name` itself."""
        kinds = [one.needs for one in self._sums[name]]
        for other, tensor in self._latest.items():
            if tensor is inputs and [one.needs for one in self._sums[other]] == kinds:
                return other
        return name


def _together(parts: Sequence[Statistics]) -> Statistics:
    """What any of them holds; what several hold is the same."""
    values = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Statistics)}
    return Statistics(**{name: next((one for one in found if one is not None), None) for name, found in values.items()})
