"""What a release must hold, as one value: from a YAML file, from flags, or from a file with flags on top.

    version: 1
    limits:                  # of the package, and of every engine that is judged
      min_speedup: 1.5
      max_ppl_ratio: 1.1
    engines:                 # optional: which engines are judged, with limits of their own on top
      tailcut: {min_tokens_per_second: 30}
      onnxruntime: {min_speedup: null}

The keys are the fields of the checks' `Limits` (`tailcut.bench.checks`), so a new check brings its keys along. A policy names
numbers, never code; unknown keys are refused with the nearest known one, and `null` or `false` leave a limit out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from tailcut import codec
from tailcut.bench import checks
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import InputError
from tailcut.recipe import Recipe
from tailcut.untrusted import MAX_SETTINGS_BYTES, parse_yaml, read_limited, require_visible

Limit = float | bool | str
SCHEMA_ID: Final = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits by key, for all engines and engine by engine; None leaves a limit of `limits` out for that engine."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    limits: Mapping[str, Limit | None] = field(default_factory=dict)
    engines: Mapping[str, Mapping[str, Limit | None]] = field(default_factory=dict)
    engine: str | None = None  # the engine judged where `engines` is empty; None: the result's first
    confidence: float = 0.95  # of every interval
    version: int = 1

    def __post_init__(self) -> None:
        if self.version != 1:
            raise InputError(f"policy version {self.version} is not known, this tailcut reads version 1")
        if not 0.5 <= self.confidence < 1.0:
            raise InputError(f"confidence must be in [0.5, 1), got {self.confidence}")
        if self.engine is not None and self.engines:
            raise InputError("a policy names one engine under engine, or several under engines, not both")
        _require_known(self.limits, "limits")
        for engine, own in self.engines.items():
            _require_known(own, f"engines.{engine}")
            shared = [key for key in own if not checks.load(owner(key)).PER_ENGINE]
            if shared:
                raise InputError(f"{shared[0]} is of the package, not of engine {engine}; state it under limits")

    @property
    def stated(self) -> bool:
        """Whether anything is judged at all."""
        return any(_is_stated(limit) for limits in (self.limits, *self.engines.values()) for limit in limits.values())

    @property
    def judged(self) -> tuple[str, ...]:
        """The names of the checks that have a limit, of any engine, in the order of the policy."""
        stated: list[str] = []
        for limits in (self.limits, *self.engines.values()):
            for key, limit in limits.items():
                if _is_stated(limit):
                    stated += [key, *_implied_by(key)]
        return tuple(dict.fromkeys(owner(key) for key in stated))

    def of(self, check: str, engine: str = "") -> Any | None:  # noqa: ANN401  (the check's own Limits)
        """The limits of one check for one engine ("": of the package); None if it is not judged."""
        stated = {**self.limits, **self.engines.get(engine, {})}
        implied = {
            key: value for one, limit in stated.items() if _is_stated(limit) for key, value in _implied_by(one).items()
        }
        own = {key: limit for key, limit in (implied | stated).items() if _is_stated(limit) and owner(key) == check}
        return _parsed(check, own) if own else None

    def min_speedup(self, first: str) -> float | None:
        """The least decode speedup asked of the judged engines (`first` where the policy names none); None if they differ."""
        found = [self.of("speedup", engine) for engine in tuple(self.engines) or (self.engine or first,)]
        stated = {limits.min_speedup for limits in found if limits is not None}
        return stated.pop() if len(stated) == 1 else None

    def shown(self) -> dict[str, float | bool | str | None]:
        """The stated limits for a verdict: `key`, and `engine.key` where an engine has its own."""
        found = dict(self.limits)
        found |= {f"{engine}.{key}": limit for engine, own in self.engines.items() for key, limit in own.items()}
        return found


def _implied_by(key: str) -> Mapping[str, Limit]:
    """What a limit demands beside itself unless the policy says otherwise: a speedup, the proof of a sparse kernel."""
    found: Mapping[str, Limit] = getattr(checks.load(owner(key)), "IMPLIES", {})
    return found


@cache
def keys() -> Mapping[str, str]:
    """Every policy key and the check that owns it."""
    return {one.name: name for name in checks.names() for one in fields(checks.load(name).Limits)}


def owner(key: str) -> str:
    """The check that a key belongs to; InputError names the nearest known key."""
    known = keys()
    if key not in known:
        raise InputError(f"unknown limit {key!r}{_nearest(key, known)}")
    return known[key]


def read_policy(path: Path, overrides: Mapping[str, Limit | None] | None = None, engine: str | None = None) -> Policy:
    """A YAML file with flags on top. `engine` alone is judged where it is given."""
    try:
        data = parse_yaml(read_limited(path, MAX_SETTINGS_BYTES), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot read the policy ({error.strerror})") from error
    return make_policy(data, str(path), overrides, engine)


def make_policy(
    data: object, source: str, overrides: Mapping[str, Limit | None] | None = None, engine: str | None = None
) -> Policy:
    """Plain settings -> a checked policy; InputError names the key that is wrong."""
    if not isinstance(data, dict):
        raise InputError(f"{source}: a policy is a mapping of settings, got {type(data).__name__}")
    require_visible(data, source)
    known = [one.name for one in fields(Policy)]
    for key in data:
        if key not in known:
            raise InputError(f"{source}: unknown setting {key!r}{_nearest(key, [*known, *keys()])}{_belongs(key)}")
    if "version" not in data:
        raise InputError(f"{source}: a policy begins with `version: 1`")
    body = {key: value for key, value in data.items() if value is not None}
    body["limits"] = {**_mapping(body.get("limits"), source, "limits"), **(overrides or {})}
    stated = {name: _mapping(limits, source, f"engines.{name}") for name, limits in _engines(body, source)}
    own = {name: {k: limit for k, limit in one.items() if k not in (overrides or {})} for name, one in stated.items()}
    body |= {"engines": own if engine is None else {}}
    if engine is not None:  # one engine, with its own limits on top
        body |= {"engine": engine, "limits": {**body["limits"], **own.get(engine, {})}}
    try:
        return codec.parse(Policy, body, source)
    except InputError as error:
        raise error if str(error).startswith(source) else InputError(f"{source}: {error}") from error


def schema() -> dict[str, Any]:
    """The JSON schema of a policy file, put together from the checks' own."""
    shared: dict[str, Any] = {}
    per_engine: dict[str, Any] = {}
    for name in checks.names():
        module = checks.load(name)
        own = {key: _described(value) for key, value in codec.json_schema(module.Limits)["properties"].items()}
        shared |= own
        per_engine |= own if module.PER_ENGINE else {}
    limits = {
        "type": "object",
        "additionalProperties": False,
        "description": "Of the package and of every judged engine.",
    }
    return {
        "$schema": SCHEMA_ID,
        "title": "tailcut gate policy",
        "type": "object",
        "additionalProperties": False,
        "required": ["version"],
        "properties": {
            "version": {"const": 1},
            "confidence": {"type": "number", "minimum": 0.5, "exclusiveMaximum": 1, "default": 0.95},
            "engine": {"type": ["string", "null"], "description": "The engine judged; null: the result's first."},
            "limits": limits | {"properties": dict(sorted(shared.items()))},
            "engines": {
                "type": "object",
                "description": "Which engines are judged, each with limits of its own on top.",
                "additionalProperties": {
                    "type": ["object", "null"],
                    "additionalProperties": False,
                    "properties": dict(sorted(per_engine.items())),
                },
            },
        },
    }


def _described(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in ("title", "default")}


def _engines(body: Mapping[str, Any], source: str) -> Iterator[tuple[str, object]]:
    yield from _mapping(body.get("engines"), source, "engines").items()


def _mapping(value: object, source: str, where: str) -> dict[str, Any]:
    """An empty section is None in YAML."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{source}: {where} is a mapping of names to values, got {type(value).__name__}")
    return value


def _require_known(limits: Mapping[str, Limit | None], where: str) -> None:
    """Names, types and ranges; InputError names the key."""
    by_check: dict[str, dict[str, Limit]] = {}
    for key, limit in limits.items():
        own = by_check.setdefault(owner(key), {})
        if limit is not None:
            own[key] = limit
    for check, own in by_check.items():
        _parsed(check, own, where)


def _parsed(check: str, own: Mapping[str, Limit | None], where: str = "limits") -> Any:  # noqa: ANN401
    return codec.parse(checks.load(check).Limits, dict(own), where)


def _is_stated(limit: Limit | None) -> bool:
    return limit is not None and limit is not False


def _nearest(key: str, known: Mapping[str, str] | list[str]) -> str:
    near = get_close_matches(key, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"


def _belongs(key: str) -> str:
    return " It belongs under limits." if key in keys() else ""


def recipe_policy(recipe: Recipe) -> Policy:
    """The recipe's policy file with its own limits on top; InputError for a limit that a run does not measure."""
    stated = {name: getattr(recipe, name) for name in ("min_speedup", "max_ppl_ratio")}
    limits = {name: limit for name, limit in stated.items() if limit is not None}
    if recipe.policy is None:
        return make_policy({"version": 1}, "recipe", limits)
    policy = read_policy(Path(recipe.policy), limits)
    unmeasured = {"tasks": "tasks", "baseline": "baseline", "under-load": "load"}
    elsewhere = [unmeasured[name] for name in policy.judged if name in unmeasured]
    if elsewhere:
        raise InputError(
            f"{recipe.policy}: `tailcut run` measures no {' and no '.join(elsewhere)}; leave those limits out here and "
            "judge its result.json by `tailcut gate` with --tasks, --baseline and --load"
        )
    return policy
