"""From ratios to numbers of units: pure arithmetic, no model.

A block gives whole key/value heads, rounded down (attention is worth more than its parameters, and LLM-Pruner's code rounds
down), and its MLP gives the rest in steps of `multiple` channels, so that a target is met to half a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tailcut.errors import InputError

_DUST: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Supply:
    """One group of one block: weights of a unit, and how many units may stay, most first; levels[0] is all of them."""

    parameters: int
    levels: tuple[int, ...]

    def removed(self, kept: int) -> int:
        """Weights that go when `kept` units stay."""
        return (self.levels[0] - kept) * self.parameters

    @property
    def step(self) -> int:
        """Weights of the largest step between two levels."""
        gaps = [a - b for a, b in zip(self.levels, self.levels[1:], strict=False)]
        return max(gaps, default=0) * self.parameters


NOTHING: Final = Supply(0, (0,))


def levels(units: int, multiple: int) -> tuple[int, ...]:
    """All units, and the multiples below that."""
    highest = (units - 1) // multiple * multiple
    return (units, *range(highest, 0, -multiple))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one block has, and how many weights are to go from its heads and its MLP."""

    heads: Supply
    mlp: Supply
    from_heads: float
    from_mlp: float


def share_equally(block: Wanted, blocks: int, target: float) -> tuple[int, int]:
    """The same heads and width for all `blocks` equal blocks, with `target` weights removed from all together.

    As many heads go as the ratio gives whole ones, fewer where the family refuses that number; more only if the MLP cannot
    take up the rest.
    """
    each = target / blocks
    _require_room(
        block.heads.removed(block.heads.levels[-1]) + block.mlp.removed(block.mlp.levels[-1]), each, block.mlp
    )
    first = _floor(block.heads, block.from_heads)
    pairs = [(heads, _nearest(block.mlp, each - block.heads.removed(heads))) for heads in block.heads.levels[first:]]

    def miss(pair: tuple[int, int]) -> float:
        return abs(block.heads.removed(pair[0]) + block.mlp.removed(pair[1]) - each)

    close = next((pair for pair in pairs if miss(pair) <= block.mlp.step / 2 + _DUST), None)
    return close or min(pairs, key=miss)


def share_out(blocks: Sequence[Wanted], target: float) -> list[tuple[int, int]]:
    """Kept heads and kept channels of every block, `target` weights removed from all together."""
    heads = [block.heads.levels[_floor(block.heads, block.from_heads)] for block in blocks]
    gone = [block.heads.removed(kept) for block, kept in zip(blocks, heads, strict=True)]
    most = sum(
        block.heads.removed(block.heads.levels[-1]) + block.mlp.removed(block.mlp.levels[-1]) for block in blocks
    )
    _require_room(most, target, max((block.mlp for block in blocks), key=lambda mlp: mlp.step))
    debts = [block.from_heads + block.from_mlp - cut for block, cut in zip(blocks, gone, strict=True)]
    widths = _fill([block.mlp for block in blocks], debts, target - sum(gone))
    left = target - sum(gone) - sum(b.mlp.removed(width) for b, width in zip(blocks, widths, strict=True))
    if left > max(block.mlp.step for block in blocks) / 2 + _DUST:  # the MLPs are used up, or are not to be cut
        owed = [block.from_heads for block in blocks]
        heads = _fill([block.heads for block in blocks], owed, left + sum(gone))
    return list(zip(heads, widths, strict=True))


def _fill(supplies: Sequence[Supply], debts: Sequence[float], target: float) -> list[int]:
    """Levels nearest to `target` in all: rounded down each, then step by step where most is still owed."""
    places = [_floor(supply, debt) for supply, debt in zip(supplies, debts, strict=True)]
    total = sum(s.removed(s.levels[p]) for s, p in zip(supplies, places, strict=True))
    while True:
        open_ = [i for i, (s, p) in enumerate(zip(supplies, places, strict=True)) if p + 1 < len(s.levels)]
        owed = {i: debts[i] - supplies[i].removed(supplies[i].levels[places[i]]) for i in open_}
        if not owed:
            break
        best = max(owed, key=lambda i: owed[i])  # of equal ones the first
        now, after = (supplies[best].removed(supplies[best].levels[places[best] + k]) for k in (0, 1))
        if abs(total + after - now - target) >= abs(total - target):
            break
        places[best] += 1
        total += after - now
    return [supply.levels[place] for supply, place in zip(supplies, places, strict=True)]


def _floor(supply: Supply, wanted: float) -> int:
    """Place of the lowest level that removes no more than `wanted`."""
    fitting = [place for place, kept in enumerate(supply.levels) if supply.removed(kept) <= wanted + _DUST]
    return max(fitting, default=0)


def _nearest(supply: Supply, wanted: float) -> int:
    return min(supply.levels, key=lambda kept: abs(supply.removed(kept) - wanted))


def _require_room(most: float, target: float, mlp: Supply) -> None:
    if target > most + mlp.step / 2 + _DUST:
        raise InputError(
            f"{target:.0f} weights are to go, but only {most:.0f} can: a key/value head and a step of MLP channels stay in every "
            "block, and protected blocks keep all; ask for a smaller ratio, protect fewer blocks or cut more kinds of units"
        )
