"""Recipes of other tools, written from an allocation. A file here is a format; its file name is its name on the command line.

Both formats of today share one spelling: stages of modifiers with targets and sparsities, where a list of sparsities
follows the order in which the *model* registers the targets, not the order of the list of targets. What a format cannot
express is refused with every matrix or item named; what it merely does otherwise is said in `Written.notes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast

from tailcut import plugins
from tailcut.allocation import Allocation

PACKAGE: Final = "tailcut.recipe_formats"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an allocation is to be written.

    pruner      "wanda" or "sparsegpt": an allocation does not say who cuts
    per_matrix  name every matrix, also where all matrices of each block have the same plan
    order       the prunable matrices in the model's order; None: the plan's own order is taken for it
    """

    pruner: str = "wanda"
    per_matrix: bool = False
    order: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A recipe's text, and sentences on what the other tool will do otherwise than tailcut."""

    text: str
    notes: tuple[str, ...]


class RecipeFormat(Protocol):
    """What a module of this folder offers."""

    SUMMARY: str  # one sentence: which tool, which versions it was tried on

    def write(self, allocation: Allocation, wanted: Wanted) -> Written:
        """The recipe's text; InputError names everything that the format cannot express."""
        ...


def names() -> tuple[str, ...]:
    return plugins.names(PACKAGE)


def load(name: str) -> RecipeFormat:
    """One format by its name; InputError lists them."""
    return cast(RecipeFormat, plugins.load(PACKAGE, name))
