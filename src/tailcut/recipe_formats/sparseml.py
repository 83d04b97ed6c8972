"""SparseML 1.8: SparseGPTModifier (OBCQ) or WandaPruningModifier with a list of sparsities, one for each target.

Run with 1.8.0 on blocks, single matrices and mixed N:M. `sequential_update` feeds every target what the cut targets
before it give, as tailcut always does, at one forward pass of the whole model for each target: with whole blocks that is
affordable, with single matrices it is not, and the recipe leaves it off.
"""

from typing import Final

from tailcut.allocation import Allocation
from tailcut.recipe_formats import Wanted, Written
from tailcut.recipe_formats._modifiers import head_of, modifiers_of, to_yaml, whole_blocks

SUMMARY: Final = "SparseML 1.8 (tried with 1.8.0; end of life): a one-shot stage"


def write(allocation: Allocation, wanted: Wanted) -> Written:
    """The recipe, and what SparseML does otherwise."""
    modifiers = modifiers_of(allocation, wanted)
    blocks = whole_blocks(modifiers)
    text = to_yaml(modifiers, wanted.pruner, {"sequential_update": blocks}, head_of(allocation, "SparseML"))
    notes = [
        "start the session with start=-1 and put an attention_mask into every batch; otherwise it prunes nothing, or fails"
    ]
    if blocks:
        notes.append(
            "targets are whole blocks: every Linear inside is cut; --per-matrix names the matrices of the plan instead"
        )
    else:
        notes.append(
            "sequential_update is off: all matrices see the inputs of the dense model, not of the model as cut so far"
        )
    if len(modifiers) > 1:
        notes.append(
            f"{len(modifiers)} modifiers work one after another, the later ones on what the earlier ones have cut"
        )
    if wanted.pruner == "sparsegpt":
        notes.append("its OBCQ removes one weight more than floor(weights * sparsity) of every 128 columns")
    return Written(text, tuple(notes))
