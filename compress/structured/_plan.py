"""What goes from where: ratios of a request to numbers of units, and scores to the units that stay."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tailcut.allocation import Allocation
from tailcut.checkpoint import Checkpoint
from tailcut.compress.discovery import Linear
from tailcut.compress.masks import lowest
from tailcut.compress.skeleton import Skeleton
from tailcut.compress.structured._config import cut_config
from tailcut.compress.structured._groups import Group, Kind, find_groups, width_key
from tailcut.compress.structured._scores import Groups, Scores, key
from tailcut.compress.structured._shares import NOTHING, Supply, Wanted, levels, share_equally, share_out
from tailcut.errors import InputError

KINDS: Final[tuple[Kind, ...]] = ("heads", "mlp")
Kept = list[dict[Kind, Tensor]]  # of each block: ascending numbers of the units that stay, kinds that lose some only


@dataclass(frozen=True, slots=True)
class Ask:
    """How much is to go, and from where.

    ratio       fraction of the weights in the blocks' matrices, (0, 1); None beside an allocation, whose own it is
    allocation  sparsities of single matrices: a group loses the mean of its matrices, weighted by size
    kinds       of units that may be cut
    multiple    MLP widths are left a multiple of this
    first       blocks at the beginning and the end that keep everything; the others make up for them
    last
    """

    ratio: float | None
    allocation: Allocation | None
    kinds: tuple[Kind, ...]
    multiple: int
    first: int
    last: int


def groups_of(skeleton: Skeleton, kinds: Sequence[Kind], where: str) -> tuple[Groups, dict[Kind, str]]:
    """Groups of these kinds in every block, and why a kind is left alone; InputError where none can be cut."""
    found: list[Mapping[Kind, Group]] = []
    reasons: dict[Kind, str] = {}
    for index in range(len(skeleton.blocks)):
        groups, why = find_groups(skeleton, index)
        reasons |= {kind: reason for kind, reason in why.items() if kind in kinds}
        found.append(groups)
    for kind in kinds:
        if kind not in reasons and all(groups[kind].units == 1 for groups in found):
            reasons[kind] = "every block has one only"
    usable = [kind for kind in kinds if kind not in reasons]
    if not usable:
        raise InputError(f"{where}: no {' or '.join(kinds)} can be cut: " + "; ".join(reasons.values()))
    return [{kind: groups[kind] for kind in usable} for groups in found], reasons


def kept_counts(
    checkpoint: Checkpoint, skeleton: Skeleton, groups: Groups, linears: Sequence[Linear], ask: Ask
) -> list[dict[Kind, int]]:
    """How many units of each kind stay in every block."""
    blocks = len(groups)
    total = sum(linear.parameters for linear in linears)
    free = [ask.first <= index < blocks - ask.last for index in range(blocks)]
    if not any(free):
        raise InputError(
            f"--protect-first {ask.first} and --protect-last {ask.last} leave none of {blocks} blocks to cut"
        )
    ratios = _ratios(groups, linears, skeleton, ask)
    whole = _whole(ask, linears)
    sizes = [{kind: group.units * group.unit_parameters for kind, group in block.items()} for block in groups]
    asked = [{kind: ratios[i][kind] * size for kind, size in block.items()} for i, block in enumerate(sizes)]
    owed = sum(sum(amounts.values()) for amounts, one in zip(asked, free, strict=True) if one)
    scale = whole * total / owed if owed else 0.0
    wanted = [
        _wanted(block, {kind: scale * amount for kind, amount in asked[i].items()}, ask, free[i])
        for i, block in enumerate(groups)
    ]
    if ask.allocation is None and all(free) and _alike(groups):
        heads = tuple(n for n in wanted[0].heads.levels if _accepted(checkpoint, skeleton, groups, n))
        block = Wanted(Supply(wanted[0].heads.parameters, heads), *_rest(wanted[0]))
        pairs = [share_equally(block, blocks, whole * total)] * blocks
    else:
        pairs = share_out(wanted, whole * total)
    return [_named(groups[index], pair) for index, pair in enumerate(pairs)]


def choose_units(groups: Groups, counts: Sequence[Mapping[Kind, int]], scores: Scores) -> Kept:
    """The units of highest score, of equal ones the last; kinds of which all stay are left out."""
    kept: Kept = []
    for index, block in enumerate(groups):
        chosen: dict[Kind, Tensor] = {}
        for kind, group in block.items():
            removed = group.units - counts[index][kind]
            if removed:
                chosen[kind] = torch.nonzero(~lowest(scores[key(index, kind)], removed)).flatten()
        kept.append(chosen)
    return kept


def blocks_to_go(ask: Ask, blocks: int) -> int:
    """round(ratio x blocks); InputError where that is none, or more than may go."""
    free, removed = max(0, blocks - ask.first - ask.last), round(float(ask.ratio or 0) * blocks)
    if not 0 < removed < blocks or removed > free:
        raise InputError(
            f"a ratio of {ask.ratio} is {removed} of {blocks} blocks, of which {free} may go and one must stay; "
            "ask for another ratio or protect fewer"
        )
    return removed


def choose_blocks(groups: Groups, scores: Scores, ask: Ask) -> list[int]:
    """Numbers of the blocks that stay: those go whose units' scores add up to least."""
    blocks = len(groups)
    sums = [float(sum(scores[key(index, kind)].double().sum() for kind in groups[index])) for index in range(blocks)]
    free = range(ask.first, blocks - ask.last)
    gone = set(sorted(free, key=lambda index: (sums[index], index))[: blocks_to_go(ask, blocks)])
    return [index for index in range(blocks) if index not in gone]


def _ratios(groups: Groups, linears: Sequence[Linear], skeleton: Skeleton, ask: Ask) -> list[dict[Kind, float]]:
    if ask.allocation is None:
        return [dict.fromkeys(block, 1.0) for block in groups]
    plans = ask.allocation.plans
    lacking = next((linear.name for linear in linears if linear.name not in plans), None)
    if lacking is not None or len(plans) != len(linears):
        raise InputError(f"{lacking or 'the allocation'}: model and allocation do not belong together; allocate again")
    found: list[dict[Kind, float]] = []
    for index, block in enumerate(groups):
        prefix = skeleton.block_prefix(index)
        ratios: dict[Kind, float] = {}
        for kind, group in block.items():
            names = {prefix + part.linear for part in group.parts}
            mine = [linear for linear in linears if linear.name in names]
            cut = sum(plans[linear.name].pattern.sparsity * linear.parameters for linear in mine)
            ratios[kind] = cut / sum(linear.parameters for linear in mine)
        found.append(ratios)
    return found


def _whole(ask: Ask, linears: Sequence[Linear]) -> float:
    """Fraction of all weights that is to go."""
    if ask.allocation is None:
        return float(ask.ratio or 0)
    stated = ask.allocation.sparsity({linear.name: linear.parameters for linear in linears})
    if stated <= 0.0:
        raise InputError("the allocation takes nothing from any matrix; allocate a sparsity above 0")
    return stated


def _wanted(block: Mapping[Kind, Group], amounts: Mapping[Kind, float], ask: Ask, free: bool) -> Wanted:
    def supply(kind: Kind, multiple: int) -> Supply:
        if kind not in block:
            return NOTHING
        group = block[kind]
        return Supply(group.unit_parameters, levels(group.units, multiple) if free else (group.units,))

    heads, mlp = (amounts.get(kind, 0.0) if free else 0.0 for kind in KINDS)
    return Wanted(supply("heads", 1), supply("mlp", ask.multiple), heads, mlp)


def _rest(block: Wanted) -> tuple[Supply, float, float]:
    return block.mlp, block.from_heads, block.from_mlp


def _named(block: Mapping[Kind, Group], pair: tuple[int, int]) -> dict[Kind, int]:
    return {kind: count for kind, count in zip(KINDS, pair, strict=True) if kind in block}


def _alike(groups: Groups) -> bool:
    return all({k: g.units for k, g in block.items()} == {k: g.units for k, g in groups[0].items()} for block in groups)


def _accepted(checkpoint: Checkpoint, skeleton: Skeleton, groups: Groups, heads: int) -> bool:
    """Whether the family's config takes this number of key/value heads (Llama's wants heads to divide the hidden size)."""
    group = groups[0].get("heads")
    if group is None or heads == group.units:
        return True
    settings = [group.settings(heads, width_key(skeleton))] * len(groups)
    body: dict[str, Any] = cut_config(checkpoint.config, settings)
    try:
        CONFIG_MAPPING[str(body["model_type"])].from_dict({k: v for k, v in body.items() if k != "auto_map"})
    except Exception:  # noqa: BLE001  (the library's validators raise classes of their own that share no base)
        return False
    return True
