"""What `tailcut run` does, as one value: from a YAML file, from flags, or from a file with flags on top.

A recipe names things; it never names code. Unknown keys are refused, plugins are looked up by listing their
folder, and nothing a recipe says can switch on remote code.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from tailcut import codec, plugins
from tailcut.allocation import Bits, Budget, parse_nm
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.quantised import CachePrecision, HeadPrecision, Precision
from tailcut.recovering import DEFAULT_METHODS, Recovering, parse_effort
from tailcut.results import Stopping
from tailcut.untrusted import MAX_SETTINGS_BYTES, parse_yaml, read_limited
from tailcut.windows import read_text

SEARCHES: Final = "tailcut.compress.searches"
# fields of compress.allocators.Settings that a recipe has under the same names: all but the cost table's
SHAPING: Final = (
    "metric", "tau", "granularity", "spread", "beta", "compat", "solver", "bounds", "step", "group", "allow_dense",
    "bit_tau",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every setting of a run. `model` is a Hugging Face directory; other paths may be "demo" (packaged text)."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    model: str
    version: Literal[1] = 1
    # whole heads and MLP channels that go first (docs/structured-pruning.md), as a fraction of the weights; None: none do
    structured: float | None = None
    importance: str = "taylor"
    # what to cut
    sparsity: float = 0.5
    pattern: str | None = None  # "2:4": N kept of M; fixes the sparsity of every layer
    allocator: str = "alpha"
    # how scores shape the plan (docs/allocation.md); None: the allocator's default
    metric: str | None = None
    tau: float | None = None
    granularity: Literal["block", "matrix", "mixed"] | None = None
    spread: float | None = None
    beta: float | None = None
    compat: bool = False
    solver: Literal["lp", "qp"] | None = None
    bounds: tuple[float, float] | None = None
    step: float | None = None
    group: int | None = None
    allow_dense: bool = False
    cap: float = 0.99
    # how long a search (allocator auto or evo) may take: minutes, 10 if neither is given, or plans it may measure
    minutes: float | None = None
    evaluations: int | None = None
    # mean bits a weight, shared out over the layers like sparsity; None: the stored precision
    bits: float | None = None
    bit_choices: tuple[Bits, ...] = (8, 4, 3, 2)
    bit_tau: float | None = None
    # a decode speed over dense in place of a sparsity: allocator latency, with a table of `tailcut cost`
    speedup: float | None = None
    cost: str | None = None
    # the cutting
    pruner: str = "wanda"
    quantiser: str = "gptq"  # of layers with bits
    calibration: str = "demo"
    samples: int = 32
    seqlen: int = 512
    seed: int = 0
    device: str = "auto"
    forward: Literal["float32", "bfloat16"] = "float32"  # passes over calibration text
    # the recovery after it (docs/recovery.md), where text to learn from is given; methods work one after another
    recover: tuple[str, ...] | None = None  # None: least-squares, then distill
    recover_text: tuple[str, ...] = ()
    recover_budget: str = "20m"  # or "500steps"
    # the package
    weights: Precision = "float32"
    head: HeadPrecision | None = None  # output head and token embedding; None: as the weights, int8 beside int4
    activation_bits: int = 8  # of int8 and int4 matrices, in the kernels: 8 or 16
    kv_cache: CachePrecision | None = None  # of fused.onnx; None: float32 beside float32 weights, else float16
    # the measuring
    engines: tuple[str, ...] = ("tailcut", "onnxruntime")
    threads: int | None = None  # None: all cores
    prompt_tokens: int = 64
    context: int = 256
    new_tokens: int = 32
    blocks: int = 8  # ABBA blocks of decoding, where none of the next three ends a session
    # `tailcut bench`'s --at-least, --precision and --minutes (docs/benchmark.md); beside bench_minutes alone at_least
    # is the min_speedup of the gate
    at_least: float | None = None
    precision: float | None = None
    bench_minutes: float | None = None  # for each engine; `minutes` is of a search
    min_blocks: int | None = None  # with these three; None: 4
    max_blocks: int | None = None  # None: 32
    text: str = "demo"
    text_context: int = 512
    windows: int | None = 40  # None: the whole text
    # the release limits; None: reported, not judged
    min_speedup: float | None = None
    max_ppl_ratio: float | None = None
    policy: str | None = None  # a policy file (docs/gate.md); the two limits above count on top of it

    def __post_init__(self) -> None:
        self.budget()
        if (self.speedup is None) != (self.allocator != "latency") or (self.speedup is None) != (self.cost is None):
            raise InputError("allocator latency, speedup and cost (a table of `tailcut cost`) go together")
        plugins.require("tailcut.compress.allocators", self.allocator, SEARCHES)
        if not self.searches and (self.minutes, self.evaluations) != (None, None):
            raise InputError(
                f"the {self.allocator} allocator takes milliseconds; minutes and evaluations are of a search"
            )
        parts = {"pruners": self.pruner, "quantisers": self.quantiser}
        for folder, name in parts.items():
            plugins.require(f"tailcut.compress.{folder}", name)
        for engine in self.engines:
            plugins.require("tailcut.bench.engines", engine)
        self.stopping()
        self.recovering()
        if self.structured is not None and not 0.0 < self.structured < 1.0:
            raise InputError(
                f"structured must be between 0 and 1, got {self.structured}; it is a fraction, not percent"
            )
        if self.importance not in (known := plugins.names("tailcut.compress.structured")):
            raise InputError(f"unknown importance {self.importance!r}; choose one of {', '.join(known)}")
        positive = ("samples", "seqlen", "prompt_tokens", "new_tokens", "blocks", "text_context")
        for field in positive:
            if getattr(self, field) < 1:
                raise InputError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.prompt_tokens + self.new_tokens > self.context:
            raise InputError(
                f"context {self.context} cannot hold {self.prompt_tokens} prompt and {self.new_tokens} new tokens"
            )

    @property
    def searches(self) -> bool:
        """Whether the allocator is a search, which looks at the model."""
        return self.allocator.replace("_", "-") in plugins.names(SEARCHES)

    @property
    def rounds(self) -> bool:
        """Whether the package computes otherwise than the compressed directory: rounded weights, or integer kernels."""
        return self.weights != "float32" or self.head not in (None, "float32") or self.bits is not None

    def recovering(self) -> Recovering | None:
        """What recovery is asked for; None: the cut model goes on as it is."""
        if self.recover is None and not self.recover_text:
            return None
        methods = DEFAULT_METHODS if self.recover is None else self.recover
        budget = parse_effort(self.recover_budget)
        return Recovering(self.recover_text, budget, methods, seed=self.seed, device=self.device)

    @property
    def recover_hashes(self) -> tuple[str, ...]:
        """The texts of the recovery by what they hold; InputError where one cannot be read."""
        return tuple(read_text(Path(text)).sha256 for text in self.recover_text)

    def stopping(self, min_speedup: float | None = None) -> Stopping | None:
        """When a bench ends; None: after `blocks`. min_speedup: what the gate will ask of it."""
        bounds = {name: found for name in ("min_blocks", "max_blocks") if (found := getattr(self, name)) is not None}
        if (self.at_least, self.precision, self.bench_minutes) == (None, None, None):
            if bounds:
                raise InputError(
                    f"{next(iter(bounds))} bounds a bench that at_least, precision or bench_minutes ends; state one of them, "
                    "or a number of blocks"
                )
            return None
        if self.bench_minutes is not None and not 0 < self.bench_minutes < float("inf"):
            raise InputError(f"bench_minutes must be a positive number, got {self.bench_minutes}")
        at_least = min_speedup if (self.at_least, self.precision) == (None, None) else self.at_least
        return Stopping(self.precision, at_least, self.bench_minutes, **bounds)

    def budget(self) -> Budget:
        """The allocation budget this recipe states."""
        pattern = None if self.pattern is None else parse_nm(self.pattern)
        sparsity = self.sparsity if self.speedup is None else 0.0
        if pattern is None:
            return Budget(sparsity, self.cap, None, self.bits, self.bit_choices, self.speedup)
        cap = max(self.cap, pattern.sparsity)
        return Budget(pattern.sparsity, cap, pattern, self.bits, self.bit_choices, self.speedup)


def read_recipe(path: Path, overrides: dict[str, Any]) -> Recipe:
    """A YAML recipe with flags on top; paths in it are relative to the recipe's own directory."""
    return make_recipe(read_settings(path) | overrides, str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, unchecked, its paths made relative to where we are."""
    try:
        data = parse_yaml(read_limited(path, MAX_SETTINGS_BYTES), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe ({error.strerror})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: a recipe is a mapping of settings, got {type(data).__name__}")
    return _anchor(data, path.parent)


def make_recipe(settings: dict[str, Any], source: str) -> Recipe:
    """Checked settings -> Recipe; InputError names the key that is wrong."""
    return codec.parse(Recipe, settings, source)


def with_paths(recipe: Recipe) -> Recipe:
    """Absolute paths, so that a resumed run means the same files."""
    return replace(
        recipe,
        model=_absolute(recipe.model),
        calibration=_absolute(recipe.calibration),
        text=_absolute(recipe.text),
        recover_text=tuple(str(Path(text).resolve()) for text in recipe.recover_text),
        cost=recipe.cost and _absolute(recipe.cost),
        policy=recipe.policy and _absolute(recipe.policy),
    )


def _absolute(value: str) -> str:
    return str(Path(value).resolve()) if _is_path(value) else value


def _is_path(value: object) -> bool:
    """Everything but the packaged text and a data set's name."""
    return isinstance(value, str) and value != "demo" and not value.startswith("datasets:")


def _anchor(data: dict[str, Any], base: Path) -> dict[str, Any]:
    paths = ("model", "calibration", "text", "cost", "policy")
    found = {key: str(base / value) if key in paths and _is_path(value) else value for key, value in data.items()}
    if isinstance(texts := data.get("recover_text"), list):
        found["recover_text"] = [str(base / text) if isinstance(text, str) else text for text in texts]
    return found
