"""llm-compressor: SparseGPTModifier or WandaPruningModifier with a list of sparsities, one for each target.

Read in its source at 0.14 and run with 0.14.0.1 on blocks, single matrices and mixed N:M. A list is matched with the
targets in the order of `model.named_modules()`. Its own OWL fails in that version before it begins ("Cannot invoke event
before initializing"), so a list from outside is how layers get unequal sparsities.
"""

from typing import Final

from tailcut.allocation import Allocation
from tailcut.recipe_formats import Wanted, Written
from tailcut.recipe_formats._modifiers import head_of, modifiers_of, to_yaml, whole_blocks

SUMMARY: Final = "llm-compressor 0.14 (tried with 0.14.0.1): oneshot(recipe=FILE) cuts block by block, as tailcut does"


def write(allocation: Allocation, wanted: Wanted) -> Written:
    """The recipe, and what llm-compressor does otherwise."""
    modifiers = modifiers_of(allocation, wanted)
    text = to_yaml(modifiers, wanted.pruner, {}, head_of(allocation, "llm-compressor"))
    notes = [
        "rows lose floor(inputs * sparsity) weights under Wanda, so blocks may fall short of the plan by less than 1 / inputs"
    ]
    if wanted.pruner == "sparsegpt":
        notes = ["its SparseGPT removes one weight more than floor(weights * sparsity) of every 128 columns"]
    if whole_blocks(modifiers):
        notes.append(
            "targets are whole blocks: every Linear inside is cut; --per-matrix names the matrices of the plan instead"
        )
    notes.append("it saves dense safetensors with zeros: `tailcut import` or `tailcut export` takes that directory on")
    return Written(text, tuple(notes))
