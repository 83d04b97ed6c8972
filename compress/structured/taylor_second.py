"""LLM-Pruner's second-order importance (`--taylor param_second`): the diagonal Fisher term alone."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from tailcut.compress.structured import Member, Needs, Settings
from tailcut.compress.structured._reduce import of_members, over_elements
from tailcut.compress.structured._taylor import second

NEEDS: Final[Needs] = "gradients"
SETTINGS: Final = ("aggregate",)


def score(members: Sequence[Member], settings: Settings) -> Tensor:
    """LLM-Pruner, second order: sum of Fisher x weight^2, the Fisher information being the mean squared gradient."""
    return of_members([over_elements(second(member)) for member in members], settings.aggregate)
