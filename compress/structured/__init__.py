"""How much a whole unit (a key/value head with its queries, a channel of an MLP) matters: one file an importance.

A unit is cut as a whole, in every matrix that it runs through: a channel of a gated MLP is a row of gate_proj, a row of
up_proj and a column of down_proj. These are the members of its dependency group (LLM-Pruner, Ma et al. 2023). An importance
sees every member channel by channel and gives one number a unit; the units with the least are cut. Scores are compared
within one group of one block only, so that no positive factor on them changes anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, Protocol, cast, get_args

from torch import Tensor

from tailcut import plugins
from tailcut.errors import InputError

PACKAGE: Final = "tailcut.compress.structured"
Needs = Literal["weights", "inputs", "gradients"]
Aggregate = Literal["sum", "mean", "max", "prod", "first"]


@dataclass(frozen=True, slots=True)
class Member:
    """One matrix's part in the units of a group; float32, None what the importance did not ask for.

    A channel of a member is a row or a column of its matrix; a head has head_dim of them in k_proj, and as many for each of
    its queries in q_proj and o_proj.
    """

    weight: Tensor  # [units, channels, elements]
    gradient: Tensor | None = None  # of the mean loss, the same shape
    fisher: Tensor | None = None  # mean over calibration sequences of the squared gradient, the same shape
    energy: Tensor | None = None  # squared input norm of each weight, broadcast to the same shape


@dataclass(frozen=True, slots=True)
class Settings:
    """What importances may be told. None and defaults are the importance's own; what one does not read is refused.

    aggregate  how a unit's scores in its members become one: sum (LLM-Pruner's default), mean, max, prod or first
    blend      weight of the fine score beside the coarse one (hywia), in place of its attention
    """

    aggregate: Aggregate = "sum"
    blend: float | None = None

    def __post_init__(self) -> None:
        if self.aggregate not in get_args(Aggregate):
            raise InputError(f"aggregate must be {', '.join(get_args(Aggregate))}, got {self.aggregate!r}")
        if self.blend is not None and not 0.0 <= self.blend <= 1.0:
            raise InputError(f"blend must be in [0, 1] (0 coarse, 1 fine), got {self.blend}")


class Importance(Protocol):
    """What a file of this folder offers. The docstring of `score`, one paragraph, is what `--list` prints."""

    @property
    def NEEDS(self) -> Needs:  # noqa: N802 - a module constant
        """What its members must hold beside the weights: nothing, the inputs' energy, or gradient and Fisher."""

    @property
    def SETTINGS(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the settings that it reads."""

    def score(self, members: Sequence[Member], settings: Settings) -> Tensor:
        """Members of one group -> importance of each unit, float32 [units], finite, not negative."""
        ...


def load(name: str, settings: Settings) -> Importance:
    """One importance by its name on the command line; InputError for a setting that it would ignore."""
    known = plugins.names(PACKAGE)
    if name.replace("_", "-") not in known:
        raise InputError(f"unknown importance {name!r}; choose one of {', '.join(known)}")
    importance = cast(Importance, plugins.load(PACKAGE, name))
    for item in fields(settings):
        given = getattr(settings, item.name) != item.default
        if given and item.name not in importance.SETTINGS:
            reads = ", ".join(importance.SETTINGS) or "no settings"
            raise InputError(f"the importance {name} does not read {item.name} (it reads {reads}); leave it out")
    return importance
