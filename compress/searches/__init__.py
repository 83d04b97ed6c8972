"""Allocators that look at the model: they cut it, read what that costs, and try again. One file a search.

Where the allocators of `tailcut.compress.allocators` are arithmetic on scores, a search takes minutes and needs the
model, a pruner and calibration text. What it keeps is the same: the parameter-weighted budget exactly, every sparsity in
[0, cap], provenance that is ready for JSON. What matrices share out is a sparsity, weights of M in patterns of one M,
or bits (see _ladder). How good a plan is, is the mean Kullback-Leibler divergence a token, in nats, of the cut model's
predictions from the dense model's, on windows of the calibration text that no statistics saw.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, cast

from tailcut import plugins
from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.compress.allocators import Settings
from tailcut.compress.calibration import Calibration
from tailcut.errors import InputError
from tailcut.progress import Reporter, silent

PACKAGE: Final = "tailcut.compress.searches"
SETTINGS: Final = ("group", "allow_dense")  # of an allocator's, that searches read


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a search may take, and how it measures.

    minutes      wall time it plans for, everything included; the last measurement may end a little later
    evaluations  instead of minutes, how many plans the quick measure may see: the result is then the same every time
    tokens       of the quick measure at its three fidelities, ascending; None: by device
    final_tokens of the slow measure, which has windows of its own; None: by device
    step         plans that are tried have sparsities that are multiples of this, where no N:M or bits are asked for; the
                 final shift to the exact budget is smaller by far
    finals       how many plans are cut as `tailcut compress` cuts them before one is chosen, uniform among them
    """

    minutes: float | None = 10.0
    evaluations: int | None = None
    tokens: tuple[int, int, int] | None = None
    final_tokens: int | None = None
    step: float = 0.02
    finals: int = 5

    @classmethod
    def asked(cls, minutes: float | None, evaluations: int | None) -> "Effort":
        """Of flags, either of which may be missing: the usual minutes where both are."""
        return cls() if minutes is None and evaluations is None else cls(minutes, evaluations)

    def __post_init__(self) -> None:
        if self.evaluations is None and (self.minutes is None or not 0.0 < self.minutes <= 1e5):
            raise InputError(f"a search needs minutes above 0, or a number of evaluations; got {self.minutes}")
        if self.evaluations is not None and self.evaluations < 1:
            raise InputError(f"a search needs at least 1 evaluation, got {self.evaluations}")
        if self.tokens is not None and not 1 < self.tokens[0] <= self.tokens[1] <= self.tokens[2]:
            raise InputError(f"the tokens of a search must be three rising numbers above 1, got {self.tokens}")
        if not 0.001 <= self.step <= 0.1:
            raise InputError(f"the step of a search must be in [0.001, 0.1], got {self.step}")
        if self.finals < 2:
            raise InputError(f"a search compares at least 2 plans at its end, got {self.finals}")


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched: a plan for `model` within `budget`, to be cut by `pruner` with statistics of `calibration`.

    With bits in the budget those are searched, at the same sparsity or pattern for all, to be rounded by `quantiser`; with
    a pattern, or a group in `settings`, N:M patterns of that mean; else sparsities. Of the settings `group` and
    `allow_dense` are read, as nm-mixed reads them. The calibration's seed is the search's. `scores` name the matrices and
    feed the allocators that plans start from. `trace` is the journal of measurements (JSON lines): a search of the same task
    goes on from it; None: kept nowhere.
    """

    model: Path
    scores: LayerScores
    budget: Budget
    pruner: str = "sparsegpt"
    calibration: Calibration = field(default_factory=Calibration)
    effort: Effort = field(default_factory=Effort)
    device: str = "auto"
    trace: Path | None = None
    quantiser: str = "gptq"
    settings: Settings = field(default_factory=Settings)


class Search(Protocol):
    """What a file of this folder offers. The docstring of `search`, one paragraph, is what `--list` prints."""

    @property
    def METRICS(self) -> tuple[str, ...]:  # noqa: N802 - a module constant
        """Metrics that `tailcut run` measures for it; others that the scores hold are used as well."""

    def search(self, task: Task, report: Reporter) -> Allocation:
        """A plan for every layer of the scores that meets the budget; InputError if it cannot."""


def load(name: str) -> Search:
    """One search by its name on the command line."""
    return cast(Search, plugins.load(PACKAGE, name))


def is_search(name: str) -> bool:
    """Whether this is the name of a search rather than of an allocator."""
    return name.replace("_", "-") in plugins.names(PACKAGE)


def search(name: str, task: Task, report: Reporter = silent) -> Allocation:
    """The plan that the search `name` finds. Raises InputError for budgets that only allocators meet."""
    require_searchable(name, task.budget, task.settings)
    return load(name).search(task, report)


def require_searchable(name: str, budget: Budget, settings: Settings | None = None) -> None:
    """InputError unless layers may share the budget unevenly, and every setting that is given shapes it."""
    given = settings.given if settings is not None else ()
    for setting in given:
        if setting not in SETTINGS:
            raise InputError(f"{name} is a search and reads no {setting}: it tries them itself; leave {setting} out")
    if budget.speedup is not None:
        raise InputError(f"{name} searches for quality at a sparsity, not for a speedup; use --allocator latency")
    if given and budget.bits is not None:
        raise InputError(f"{name} searches either bits or N:M patterns; leave out bits, or {' and '.join(given)}")
    if "allow_dense" in given and "group" not in given and budget.pattern is None:
        raise InputError(f"allow-dense is about N:M patterns; give {name} a mean --pattern such as 4:8, or a --group")
