"""What a sweep goes over: a recipe whose axes may be lists, checked as a whole before anything is measured.

    allocator x (sparsity, or an N:M pattern) = the plans;  plan x weights = the packages;  package x engine = the points

An N:M pattern fixes the sparsity, so it is one plan for each listed allocator that takes patterns; for uniform if none does.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from tailcut import plugins
from tailcut.allocation import parse_nm
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.quantised import Precision
from tailcut.recipe import Recipe, make_recipe, read_settings, with_paths
from tailcut.sweep_points import percent

UNSTRUCTURED: Final = "unstructured"
PEERS: Final = ("onnxruntime-int8", "onnxruntime-int4")
SPARSITIES: Final = (0.5, 0.6, 0.7, 0.8)
_ENGINES: Final = "tailcut.bench.engines"
# singular and plural mean the same; the defaults are what a sweep is mostly for
_AXES: Final[dict[str, tuple[Any, ...]]] = {
    "allocator": ("alpha", "uniform"),
    "sparsity": SPARSITIES,
    "pattern": (UNSTRUCTURED,),
    "weights": ("float32",),
    "engines": ("tailcut",),
    "baselines": PEERS,
}
_OTHER_NAMES: Final = {
    "allocators": "allocator",
    "sparsities": "sparsity",
    "patterns": "pattern",
    "engine": "engines",
    "baseline": "baselines",
}
_OF_PATTERNS: Final = ("uniform", "nm-mixed", "auto", "evo")
_MOST: Final = 500  # packages; more is a slip of the keyboard, not a week's work


@dataclass(frozen=True, slots=True)
class Cut:
    """One plan: which allocator, and how much goes. `sparsity` of a pattern is the pattern's own."""

    allocator: str
    sparsity: float
    pattern: str | None = None

    @property
    def name(self) -> str:
        """As a directory's name."""
        return f"{self.allocator}-{(self.pattern or f'{self.sparsity:g}').replace(':', 'of')}"

    def __str__(self) -> str:
        return f"{self.allocator} {self.pattern or percent(self.sparsity)}"


@dataclass(frozen=True, slots=True)
class Grid:
    """A checked sweep. `recipe` holds what does not vary; engines that quantise the dense model are in `baselines`."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    recipe: Recipe
    cuts: tuple[Cut, ...]
    weights: tuple[Precision, ...]
    engines: tuple[str, ...]
    baselines: tuple[str, ...]

    def recipe_of(self, cut: Cut) -> Recipe:
        """What `tailcut run` would be told for this plan."""
        return replace(self.recipe, allocator=cut.allocator, sparsity=cut.sparsity, pattern=cut.pattern)


def read_grid(source: str, given: dict[str, Any]) -> Grid:
    """A YAML recipe with lists, or a model directory; `given` wins over the file. InputError names what is wrong."""
    if not source.endswith((".yaml", ".yml")):
        return make_grid(given | {"model": source}, "options")
    return make_grid(_named(read_settings(Path(source)), source) | _named(given, "options"), source)


def make_grid(settings: dict[str, Any], source: str) -> Grid:
    """Settings whose axes may be single values or lists -> a grid of which every plan is a valid recipe."""
    axes, rest = _split(settings, source)
    weights = axes["weights"]
    first = {"weights": weights[0], "engines": [*axes["engines"], *axes["baselines"]]}
    cuts = _cuts(axes, source)
    recipes = {
        weight: make_recipe(rest | first | _of(cut) | {"weights": weight}, source) for weight in weights for cut in cuts
    }
    _require_sweepable(recipes[weights[0]], len(cuts) * len(weights), source)
    grid = Grid(with_paths(recipes[weights[0]]), cuts, tuple(recipes), axes["engines"], axes["baselines"])
    for cut in cuts:
        grid.recipe_of(cut)
    return grid


def _named(settings: dict[str, Any], source: str) -> dict[str, Any]:
    """Every axis under its one name."""
    named: dict[str, Any] = {}
    for key, value in settings.items():
        name = _OTHER_NAMES.get(str(key), str(key))
        if name in named:
            raise InputError(f"{source}: {name} is given twice, once as {key}; leave one out")
        named[name] = value
    return named


def _split(settings: dict[str, Any], source: str) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any]]:
    named = _named(settings, source)
    sized = "sparsity" in named
    axes = {name: _listed(name, named.pop(name, default), source) for name, default in _AXES.items()}
    if UNSTRUCTURED not in axes["pattern"] and sized:
        raise InputError(
            f"{source}: a pattern fixes the sparsity, so sparsity says nothing here; leave it out, or add "
            f"{UNSTRUCTURED} to the patterns"
        )
    for name in ("engines", "baselines"):
        axes[name] = tuple(plugins.require(_ENGINES, str(engine)) for engine in axes[name] if engine != "none")
    if not axes["engines"]:
        raise InputError(f"{source}: name at least one engine for the cut packages, such as tailcut")
    return axes, named


def _listed(name: str, value: object, source: str) -> tuple[Any, ...]:
    items = value if isinstance(value, list | tuple) else (value,)
    if not items or not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
        raise InputError(f"{source}: {name} is one value or a list of values, got {value!r}")
    return tuple(dict.fromkeys(items))


def _cuts(axes: dict[str, tuple[Any, ...]], source: str) -> tuple[Cut, ...]:
    cuts: list[Cut] = []
    for pattern in map(str, axes["pattern"]):
        if pattern == UNSTRUCTURED:
            sparsities = [_number(value, source) for value in axes["sparsity"]]
            cuts += [Cut(str(allocator), value) for allocator in axes["allocator"] for value in sparsities]
        else:
            taking = [name for name in map(str, axes["allocator"]) if name in _OF_PATTERNS] or ["uniform"]
            cuts += [Cut(allocator, parse_nm(pattern).sparsity, pattern) for allocator in taking]
    return tuple(dict.fromkeys(cuts))


def _number(value: object, source: str) -> float:
    if isinstance(value, str):
        raise InputError(f"{source}: sparsity {value!r} is not a number; it is a fraction such as 0.6")
    return float(value)  # type: ignore[arg-type]  # _listed let numbers and text through


def _of(cut: Cut) -> dict[str, Any]:
    return {"allocator": cut.allocator, "sparsity": cut.sparsity, "pattern": cut.pattern}


def _require_sweepable(recipe: Recipe, packages: int, source: str) -> None:
    if recipe.recovering() is not None:
        raise InputError(f"{source}: a sweep compares plans as they are cut; recovery is of `tailcut run`")
    if recipe.structured is not None:
        raise InputError(f"{source}: a sweep cuts no units; run `tailcut structured` before it, and sweep its output")
    if recipe.speedup is not None:
        raise InputError(f"{source}: a sweep goes over sparsities; allocator latency and speedup are of `tailcut run`")
    if recipe.stopping() is not None:
        raise InputError(
            f"{source}: a sweep measures a number of blocks; at_least, precision and bench_minutes are of `tailcut run`"
        )
    if packages > _MOST:
        raise InputError(f"{source}: {packages} packages are more than the {_MOST} that a sweep makes; split it")


def split_words(text: str) -> tuple[str, ...]:
    """'alpha, uniform' -> ("alpha", "uniform"), as the axes are written on the command line."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def split_numbers(text: str) -> tuple[float, ...]:
    """'0.5,0.6' -> (0.5, 0.6)."""
    try:
        return tuple(float(word) for word in split_words(text))
    except ValueError as error:
        raise InputError(f"sparsity {text!r} is not a list of fractions such as 0.5,0.6,0.7") from error
