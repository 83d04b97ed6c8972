"""Recipes of SparseML and llm-compressor read into a recipe of tailcut; whatever does not carry over is named.

Nothing in such a file is run: `eval(...)` is arithmetic over numbers, tags construct nothing, names of modifiers are looked up
in tables, and patterns are bounded. The result is checked by the same reader as every recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailcut.allocation import NM, Allocation, LayerPlan, Pattern
from tailcut.errors import InputError
from tailcut.recipe import make_recipe
from tailcut.recipe_import import _others, _pruning, _quantising
from tailcut.recipe_import._parts import Matrix, Part
from tailcut.recipe_import._reading import Read, modifiers_in, read_modifiers

__all__ = ["Imported", "Matrix", "import_recipe", "modifiers_in", "translate"]


@dataclass(frozen=True, slots=True)
class Imported:
    """`settings`: a checked recipe without its defaults. `plan`: given where the matrices do not all get the same.

    `mapped` and `unsupported` are sentences that begin with the stage and modifier they are about.
    """

    settings: Mapping[str, Any]
    plan: Allocation | None
    mapped: tuple[str, ...]
    unsupported: tuple[str, ...]


def import_recipe(path: Path, model: str, matrices: Sequence[Matrix], texts: Sequence[str] = ()) -> Imported:
    """A recipe file of theirs for the model whose prunable matrices are `matrices`; `texts` to recover with, if any."""
    return translate(read_modifiers(path), str(path), model, matrices, texts)


def translate(
    reads: Sequence[Read], source: str, model: str, matrices: Sequence[Matrix], texts: Sequence[str] = ()
) -> Imported:
    """The same from modifiers that are read already; InputError where nothing at all carries over."""
    parts = [_part(read, matrices, bool(texts)) for read in reads]
    settings, clashes = _merged(parts)
    mapped = tuple(sentence for part in parts for sentence in part.mapped)
    unsupported = [sentence for part in parts for sentence in part.unsupported] + clashes
    patterns = _patterns(parts)
    plan: Allocation | None = None
    if patterns is not None and settings.get("allocator") == "owl":
        unsupported.append("a second pruning modifier beside OWL: only OWL is taken over; cut in two runs")
    elif patterns is not None:
        settings = _budget(patterns, matrices) | settings
        if len(set(patterns.values())) > 1:
            plan = Allocation(
                {name: LayerPlan(pattern) for name, pattern in patterns.items()}, {"allocator": "imported"}
            )
            unsupported.append(
                "different sparsities for different matrices: a recipe names an allocator, not a list; the list is written as "
                "a plan for `tailcut compress`, and the recipe has their mean"
            )
    if not settings:
        raise InputError(f"{source}: nothing in it carries over to a recipe of tailcut: {' | '.join(unsupported[:4])}")
    if texts and "recover" in settings:
        settings["recover_text"] = list(texts)
    made = {"model": model, **settings}
    make_recipe(made, source)  # the same checks as for any recipe
    return Imported(made, plan, mapped, tuple(unsupported))


def _part(read: Read, matrices: Sequence[Matrix], has_text: bool) -> Part:
    if read.name in _pruning.ONE_SHOT:
        return _pruning.one_shot(read, matrices)
    if read.name in _pruning.GRADUAL:
        return _pruning.gradual(read, matrices)
    if read.name in _quantising.QUANTISERS:
        return _quantising.quantising(read)
    if read.name == "ConstantPruningModifier":
        return _others.constant(read)
    if read.name in _others.DISTILLERS:
        return _others.distilling(read, has_text)
    return _others.other(read)


def _merged(parts: Sequence[Part]) -> tuple[dict[str, Any], list[str]]:
    """Settings of all modifiers; where two disagree the first one counts and the second is named."""
    settings: dict[str, Any] = {}
    clashes: list[str] = []
    for part in parts:
        for key, value in part.settings.items():
            if settings.setdefault(key, value) != value:
                clashes.append(
                    f"{key} {value}: another modifier already said {settings[key]}; cut or round in two runs"
                )
    return settings, clashes


def _patterns(parts: Sequence[Part]) -> dict[str, Pattern] | None:
    """Matrix name -> pattern over all pruning modifiers; of two for one matrix the sparser one, as cutting twice would give."""
    found: dict[str, Pattern] | None = None
    for part in parts:
        if part.plan is None:
            continue
        before = found or {}
        found = {
            name: max(before.get(name, pattern), pattern, key=lambda one: one.sparsity)
            for name, pattern in part.plan.items()
        }
    return found


def _budget(patterns: Mapping[str, Pattern], matrices: Sequence[Matrix]) -> dict[str, Any]:
    """sparsity or pattern of the recipe: what all matrices share, or their mean weighted by parameters."""
    kinds = set(patterns.values())
    if len(kinds) == 1 and isinstance(only := next(iter(kinds)), NM):
        return {"pattern": str(only), "allocator": "uniform"}
    if len(kinds) == 1:
        sparsity = next(iter(kinds)).sparsity
    else:
        total = sum(matrix.parameters for matrix in matrices)
        sparsity = round(sum(patterns[matrix.name].sparsity * matrix.parameters for matrix in matrices) / total, 6)
    return {"sparsity": sparsity, "allocator": "uniform"}
