"""LLM-Pruner's mixed importance (`--taylor param_mix`), as its paper has it."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from tailcut.compress.structured import Member, Needs, Settings
from tailcut.compress.structured._reduce import of_members, over_elements
from tailcut.compress.structured._taylor import mixed

NEEDS: Final[Needs] = "gradients"
SETTINGS: Final = ("aggregate",)


def score(members: Sequence[Member], settings: Settings) -> Tensor:
    """LLM-Pruner, mixed: sum over the weights of a unit of |gradient x weight - 1/2 Fisher x weight^2|."""
    return of_members([over_elements(mixed(member).abs()) for member in members], settings.aggregate)
