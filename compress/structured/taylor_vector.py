"""LLM-Pruner's vectorised importance (`--taylor vectorize`): signs of single weights may cancel."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from tailcut.compress.structured import Member, Needs, Settings
from tailcut.compress.structured._reduce import of_members
from tailcut.compress.structured._taylor import first

NEEDS: Final[Needs] = "gradients"
SETTINGS: Final = ("aggregate",)


def score(members: Sequence[Member], settings: Settings) -> Tensor:
    """LLM-Pruner, vectorised: |sum of gradient x weight| of each channel, summed over the unit's channels and matrices."""
    return of_members([first(member).sum(2).abs().sum(1) for member in members], settings.aggregate)
