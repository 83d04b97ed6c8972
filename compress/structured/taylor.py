"""LLM-Pruner's first-order element-wise importance (`--taylor param_first`, what its script uses)."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from tailcut.compress.structured import Member, Needs, Settings
from tailcut.compress.structured._reduce import of_members, over_elements
from tailcut.compress.structured._taylor import first

NEEDS: Final[Needs] = "gradients"
SETTINGS: Final = ("aggregate",)


def score(members: Sequence[Member], settings: Settings) -> Tensor:
    """LLM-Pruner, first order: sum over the weights of a unit of |gradient x weight|."""
    return of_members([over_elements(first(member).abs()) for member in members], settings.aggregate)
