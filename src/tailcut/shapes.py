"""Blocks of different shapes in one model: what `config.json` says of them, in transformers' own words.

    "per_layer_config": {"03": {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 1024}, ...}

holds, by index of the block, what differs from the rest of the config (`PreTrainedConfig.per_layer_config`). Up to 5.23
transformers reads that key but builds such blocks for a handful of families only; Llama, Qwen and Gemma are refused with
an error that names the attribute. tailcut builds the blocks itself, from the family's own classes.
"""

from collections.abc import Mapping
from typing import Any, Final

from tailcut.errors import InputError

KEY: Final = "per_layer_config"
HEADS: Final = "num_attention_heads"
KV_HEADS: Final = "num_key_value_heads"
WIDTHS: Final = ("intermediate_size", "ffn_dim", "n_inner")  # an MLP's width, as families spell it
_KNOWN: Final = frozenset((HEADS, KV_HEADS, *WIDTHS))
Overrides = Mapping[str, int]


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what differs by block."""
    return {name: value for name, value in config.items() if name != KEY}


def differs(config: Mapping[str, Any]) -> bool:
    """Whether blocks have shapes of their own."""
    return bool(config.get(KEY))


def overrides_of(config: Mapping[str, Any], blocks: int) -> tuple[Overrides, ...]:
    """What each of the blocks has of its own, in order; InputError for what tailcut cannot build."""
    stated = config.get(KEY) or {}
    if not isinstance(stated, Mapping):
        raise InputError(f"config.json: {KEY} must map blocks to settings, got {type(stated).__name__}")
    found: list[dict[str, int]] = [{} for _ in range(blocks)]
    for name, settings in stated.items():
        index = int(name) if str(name).isdigit() else blocks
        if index >= blocks or not isinstance(settings, Mapping):
            raise InputError(
                f"config.json: {KEY} has an entry {name!r}; entries are settings of blocks 0 to {blocks - 1}"
            )
        for key, value in settings.items():
            found[index][_known(key)] = _positive(f"{KEY} {name}: {key}", value)
    return tuple(found)


def written(overrides: Mapping[int, Overrides]) -> dict[str, dict[str, int]]:
    """The entry for config.json; keys are padded with zeros, so that they sort as blocks do."""
    digits = len(str(max(overrides, default=0)))
    return {str(index).zfill(digits): dict(own) for index, own in sorted(overrides.items()) if own}


def require_equal(config: Mapping[str, Any], who: str) -> None:
    """InputError for a model whose blocks differ, on behalf of something that cannot build it."""
    if differs(config):
        raise InputError(
            f"{who} cannot load blocks of different shapes ({KEY} in config.json); cut the model with one ratio for all "
            "blocks (`tailcut structured` without --allocation and --protect), or export it and use the package"
        )


def _known(key: str) -> str:
    if key not in _KNOWN:
        raise InputError(
            f"config.json: {KEY} changes {key}, which tailcut does not build; it builds {', '.join(sorted(_KNOWN))}"
        )
    return key


def _positive(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"config.json: {what} must be a positive integer, got {value!r}")
    return value
