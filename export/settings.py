"""Reading a model's config: values with clear errors, old and new spellings of rotary settings."""

from collections.abc import Callable, Mapping
from typing import Any

from tailcut.errors import InputError

Config = Mapping[str, Any]


def positive(config: Config, key: str, default: int | None = None) -> int:
    """A positive integer of the config; `default` when it is absent or null."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InputError(f"config.json: {key} must be a positive integer, got {value!r}")
    return value


def number(config: Config, key: str, default: float | None = None) -> float:
    """A finite number of the config; `default` when it is absent or null."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise InputError(f"config.json: {key} must be a number, got {value!r}")
    return float(value)


def optional_number(config: Config, key: str) -> float | None:
    """A number, or None when the config says null or nothing."""
    return None if config.get(key) is None else number(config, key)


def rope_settings(config: Config, layer_type: str | None = None) -> dict[str, Any]:
    """The rotary settings of one layer type, whichever generation of transformers wrote the config.

    transformers 5 writes `rope_parameters` (possibly one per layer type); earlier ones `rope_theta` and
    `rope_scaling` (with key "type" or "rope_type").
    """
    found = config.get("rope_parameters")
    if isinstance(found, Mapping) and layer_type is not None and isinstance(found.get(layer_type), Mapping):
        found = found[layer_type]
    if not isinstance(found, Mapping):
        scaling = config.get("rope_scaling")
        found = scaling if isinstance(scaling, Mapping) else {}
    merged = dict(found)
    merged.setdefault("rope_theta", number(config, "rope_theta", 10000.0))
    merged.setdefault("rope_type", merged.pop("type", "default"))
    merged.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    return merged


def sliding_windows(
    config: Config, layers: int, *, window: int | None, every: Callable[[int], bool]
) -> tuple[int | None, ...]:
    """The window of each layer: from `layer_types` when the config lists them, else where `every(index)` says so."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        unknown = sorted(set(map(str, kinds)) - {"sliding_attention", "full_attention"})
        if unknown:
            raise InputError(f"config.json: layer type {unknown[0]!r} is not exported; full and sliding attention are")
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return tuple(window if every(index) else None for index in range(layers))
