"""Squared weights: LLM-Pruner's L2 baseline."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from tailcut.compress.structured import Member, Needs, Settings
from tailcut.compress.structured._reduce import of_members, over_elements

NEEDS: Final[Needs] = "weights"
SETTINGS: Final = ("aggregate",)


def score(members: Sequence[Member], settings: Settings) -> Tensor:
    """Sum of the squared weights of a unit. Reads no text; a poor guide in language models (LLM-Pruner's L2 row)."""
    return of_members([over_elements(member.weight.square()) for member in members], settings.aggregate)
