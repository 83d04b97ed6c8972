"""From an allocation to modifiers: who is targeted, with which sparsities, under which mask.

`mask_structure: "N:M"` counts the weights that are *removed* of every M, ours the ones that are kept: 1:4 here is "3:4"
there. Matrices that lose nothing are targeted by nobody.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tailcut.allocation import NM, Allocation, Dense, LayerPlan, Pattern, Unstructured
from tailcut.errors import InputError
from tailcut.recipe_formats import Wanted

CLASSES: Final = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
SWEEP: Final = 128  # columns that their SparseGPT corrects at once; groups of N:M may not cross that
# a module's name: anything else could be read as a pattern ("re:…") or as the name of a class
_NAME: Final = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+", re.ASCII)
_BLOCK: Final = re.compile(r"(.*?\.\d+)\.", re.ASCII)
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class Modifier:
    """One modifier: `targets` in the model's order, and a sparsity for all or one for each. `mask`: "0:0" is unstructured."""

    group: str
    mask: str
    targets: tuple[str, ...]
    sparsity: float | tuple[float, ...]


def modifiers_of(allocation: Allocation, wanted: Wanted) -> tuple[Modifier, ...]:
    """One modifier for the unstructured plans and one for each N:M; InputError for what no modifier can say."""
    if wanted.pruner not in CLASSES:
        raise InputError(
            f"pruner {wanted.pruner!r}: these recipes cut in one shot with {' or '.join(CLASSES)}; their magnitude modifier "
            "prunes step by step while a model is trained"
        )
    plans = _ordered(allocation, wanted.order)
    _refuse(plans, wanted.pruner)
    units = plans if wanted.per_matrix else (_blocks(plans) or plans)
    cut = {name: plan.pattern for name, plan in units.items() if plan.pattern.sparsity > 0.0}
    if not cut:
        raise InputError("the allocation cuts nothing, so there is no recipe to write")
    kinds: dict[str, dict[str, Pattern]] = {}
    for name, pattern in cut.items():
        kinds.setdefault(_mask(pattern), {})[name] = pattern
    return tuple(_modifier(mask, kinds[mask]) for mask in sorted(kinds))


def to_yaml(modifiers: tuple[Modifier, ...], pruner: str, settings: Mapping[str, Any], head: tuple[str, ...]) -> str:
    """A one-stage recipe; `settings` go into every modifier, `head` becomes comments."""
    groups = {
        f"{modifier.group}_modifiers": {
            CLASSES[pruner]: {
                "sparsity": modifier.sparsity if isinstance(modifier.sparsity, float) else list(modifier.sparsity),
                "mask_structure": modifier.mask,
                "targets": list(modifier.targets),
                **settings,
            }
        }
        for modifier in modifiers
    }
    body = yaml.safe_dump({"oneshot_stage": groups}, sort_keys=False, width=100)
    return "".join(f"# {line}\n" for line in head) + str(body)


def head_of(allocation: Allocation, tool: str) -> tuple[str, ...]:
    """Comment lines: what this is and where the plan came from. json.dumps: no text of a file begins a line of its own."""
    allocator = json.dumps(str(allocation.provenance.get("allocator", "unknown"))[:80])
    return (
        f"A tailcut allocation for {tool}: one sparsity for each target, in the model's order.",
        f"Allocator: {allocator}. mask_structure counts what is removed of each M.",
    )


def many(items: list[str]) -> str:
    """The first of many items, and how many more there are."""
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more


def whole_blocks(modifiers: tuple[Modifier, ...]) -> bool:
    """Whether the targets are decoder blocks, not matrices."""
    return all(target.rsplit(".", 1)[-1].isdigit() for one in modifiers for target in one.targets)


def _ordered(allocation: Allocation, order: object) -> dict[str, LayerPlan]:
    odd = next((name for name in allocation.plans if not _NAME.fullmatch(name)), None)
    if odd is not None:
        raise InputError(f"the allocation names {odd[:80]!r}, which is no module's name and could be read as a pattern")
    if order is None:
        return dict(allocation.plans)
    known = list(order) if isinstance(order, list | tuple) else []
    if set(known) != set(allocation.plans):
        strange = sorted(set(known) ^ set(allocation.plans))
        raise InputError(f"the allocation is not one of this model: only one of them has {many(strange)}")
    return {name: allocation.plans[name] for name in known}


def _refuse(plans: Mapping[str, LayerPlan], pruner: str) -> None:
    wrong: list[str] = []
    for name, plan in plans.items():
        if plan.bits is not None:
            wrong.append(f"{name}: {plan.bits} bits (their quantisers do not keep a mask)")
        if plan.pattern.sparsity >= 1.0:
            wrong.append(f"{name}: nothing of it would be left (their SparseGPT fails there)")
        if pruner == "sparsegpt" and isinstance(plan.pattern, NM) and SWEEP % plan.pattern.block:
            wrong.append(f"{name}: groups of {plan.pattern.block} cross its blocks of {SWEEP} columns")
    if wrong:
        raise InputError(
            f"this plan cannot be said in that format: {many(wrong)}; allocate without these and write again"
        )


def _blocks(plans: Mapping[str, LayerPlan]) -> dict[str, LayerPlan] | None:
    """The blocks' plans where all matrices of each block have the same one; None otherwise."""
    found: dict[str, LayerPlan] = {}
    for name, plan in plans.items():
        match = _BLOCK.match(name)
        if match is None or found.setdefault(match[1], plan).pattern != plan.pattern:
            return None
    return dict(sorted(found.items(), key=lambda item: int(item[0].rsplit(".", 1)[-1])))


def _mask(pattern: Pattern) -> str:
    return f"{pattern.block - pattern.keep}:{pattern.block}" if isinstance(pattern, NM) else "0:0"


def _modifier(mask: str, plans: Mapping[str, Pattern]) -> Modifier:
    group = "unstructured" if mask == "0:0" else f"remove_{mask.replace(':', '_of_')}"
    values = tuple(_sparsity(pattern) for pattern in plans.values())
    same = len(set(values)) == 1
    return Modifier(group, mask, tuple(plans), values[0] if same else values)


def _sparsity(pattern: Pattern) -> float:
    if isinstance(pattern, Dense | Unstructured | NM):
        return float(pattern.sparsity)
    raise InputError(f"unknown pattern {pattern!r}")
