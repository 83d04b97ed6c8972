"""What the big table of allocators consists of: variants, cells, the order in which they are measured. No torch.

A cell is (model, variant, pruner, target, calibration seed); a variant is an allocator with settings, all others being
its defaults: nothing here was chosen by looking at the test text.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tailcut.allocation import NM, Allocation, Budget, LayerScores, parse_nm
from tailcut.compress.allocators import Settings, allocate, metrics_needed

PRUNERS: Final = ("sparsegpt", "wanda")
SPARSITIES: Final = ("0.7", "0.6", "0.5")
PATTERNS: Final = ("2:4", "4:8", "3:8")
SEARCHES: Final = ("auto", "evo")
# once a model, and once a model and calibration seed
SPECTRA_METRICS: Final = ("alpha_peak", "alpha_mid", "farms", "stable_rank", "alpha_hat", "magnitude")
TEXT_METRICS: Final = ("owl", "dlp", "als", "wanda")


@dataclass(frozen=True)
class Variant:
    """A row of the table. `patterns`: the N:M targets it can be given; `sparsities`: whether it takes plain ones."""

    allocator: str
    settings: Settings = field(default_factory=Settings)
    patterns: tuple[str, ...] = ()
    sparsities: bool = True


VARIANTS: Final[Mapping[str, Variant]] = {
    "uniform": Variant("uniform", patterns=PATTERNS),
    "alpha": Variant("alpha"),
    "owl": Variant("owl"),
    "auto": Variant("auto", patterns=("4:8", "3:8")),  # with a pattern: N:8 that differ, as nm-mixed
    "dlp": Variant("dlp"),
    "atp": Variant("atp"),
    "als-qp": Variant("als", Settings(solver="qp")),
    "als-lp": Variant("als", Settings(solver="lp")),
    "alpha-matrix": Variant("alpha", Settings(granularity="matrix")),
    "alpha-mixed": Variant("alpha", Settings(granularity="mixed")),
    "alpha-mid": Variant("alpha", Settings(metric="alpha_mid")),
    "alpha-farms": Variant("alpha", Settings(metric="farms")),
    "alpha-hat": Variant("alpha", Settings(metric="alpha_hat")),
    "stable-rank": Variant("alpha", Settings(metric="stable_rank")),
    "er": Variant("er"),
    "lamp": Variant("lamp"),
    "global": Variant("global"),
    "global-wanda": Variant("global", Settings(metric="wanda")),
    "nm-mixed": Variant("nm-mixed", patterns=("4:8", "3:8"), sparsities=False),
    "evo": Variant("evo"),
}
FIRST: Final = ("uniform", "alpha", "owl", "auto")  # measured before all others
SAME: Final = {"erk": "er"}  # a linear layer has no kernel: the same plans


@dataclass(frozen=True)
class Cell:
    """One measurement. `target` is a sparsity ("0.7") or the (mean) pattern ("2:4")."""

    model: str
    variant: str
    pruner: str
    target: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.model} {self.variant} {self.pruner} {self.target} {self.seed}"

    @property
    def source(self) -> "Cell | None":
        """The cell whose search finds this one's plan, which may be itself: searches are made with seed 0. None: none does."""
        return replace(self, seed=0) if VARIANTS[self.variant].allocator in SEARCHES else None

    @property
    def searches(self) -> bool:
        return self.source == self

    @property
    def needs(self) -> tuple[str, ...]:
        """Which measurements its plan reads: "spectra", "text"."""
        if self.source is not None:
            return ("spectra", "text") if self.searches else ()
        variant = VARIANTS[self.variant]
        metrics = set(metrics_needed(variant.allocator, variant.settings.metric))
        kinds = {"spectra": SPECTRA_METRICS, "text": TEXT_METRICS}
        return tuple(kind for kind, known in kinds.items() if metrics & set(known))

    @property
    def pattern(self) -> NM | None:
        return parse_nm(self.target) if ":" in self.target else None

    @property
    def budget(self) -> Budget:
        pattern = self.pattern
        return Budget(float(self.target)) if pattern is None else Budget(pattern.sparsity, pattern=pattern)

    def plan(self, scores: LayerScores) -> Allocation:
        """The allocation of a variant that is arithmetic on scores."""
        variant = VARIANTS[self.variant]
        return allocate(variant.allocator, scores, self.budget, variant.settings)


def search_file(work: Path, key: str, name: str) -> Path:
    """What the search of a cell leaves: its journal, "search.jsonl", and the plan that it found, "plan.json"."""
    return work / f"{key.replace(' ', '_').replace(':', '-')}.{name}"


def cell_of(text: str) -> Cell:
    """The cell whose key this is."""
    model, variant, pruner, target, seed = text.split()
    return Cell(model, variant, pruner, target, int(seed))


def cells(models: Sequence[str], wanted: Mapping[str, Sequence[Any]]) -> list[Cell]:
    """Every cell of the models, most important first. `wanted` narrows: variants, pruners, targets, seeds (empty: all)."""
    return sorted(_all(models, wanted), key=lambda cell: _rank(cell, models))


def _all(models: Iterable[str], wanted: Mapping[str, Sequence[Any]]) -> Iterator[Cell]:
    for model in models:
        for name in wanted.get("variants") or VARIANTS:
            variant = VARIANTS[name]
            targets = (*(SPARSITIES if variant.sparsities else ()), *variant.patterns)
            for target in targets:
                if wanted.get("targets") and target not in wanted["targets"]:
                    continue
                for pruner in wanted.get("pruners") or PRUNERS:
                    for seed in wanted.get("seeds") or (0, 1, 2):
                        yield Cell(model, name, pruner, target, int(seed))


def _rank(cell: Cell, models: Sequence[str]) -> tuple[int, ...]:
    """Seed 0: the first variants at 60 and 70 % of every model, then all else of it; then seeds 1 and 2 likewise.

    evo is a part of what auto does: it comes after everything else of its seed.
    """
    main = cell.variant in FIRST and cell.target in ("0.6", "0.7")
    names, targets = list(VARIANTS), [*SPARSITIES, *PATTERNS]
    last = cell.variant == "evo"
    return (
        int(last),
        cell.seed,
        0 if main else 1,
        models.index(cell.model),
        names.index(cell.variant),
        targets.index(cell.target),
        PRUNERS.index(cell.pruner),
    )


def merged(first: LayerScores, second: LayerScores) -> LayerScores:
    """The values, curves and pairs of two measurements of the same model."""
    others = {layer.name: layer for layer in second.layers}
    layers = tuple(
        replace(
            layer,
            values={**layer.values, **others[layer.name].values},
            curves={**layer.curves, **others[layer.name].curves},
        )
        for layer in first.layers
    )
    return replace(
        first, layers=layers, measured={**first.measured, **second.measured}, pairs={**first.pairs, **second.pairs}
    )
