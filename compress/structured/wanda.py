"""Wanda's score summed over units ("Wanda-sp", the baseline of An et al. 2024, FLAP)."""

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from tailcut.compress.structured import Member, Needs, Settings
from tailcut.compress.structured._reduce import of_members, over_elements

NEEDS: Final[Needs] = "inputs"
SETTINGS: Final = ("aggregate",)


def score(members: Sequence[Member], settings: Settings) -> Tensor:
    """Sum of |w| times the norm of its input over calibration text. No gradients: one forward pass is all it needs."""
    return of_members([over_elements(_wanda(member)) for member in members], settings.aggregate)


def _wanda(member: Member) -> Tensor:
    if member.energy is None:
        raise ValueError("members hold no input energy; the importance must state that it needs inputs")
    return member.weight.abs() * member.energy.sqrt()
