"""The config of a cut model: one shape for all blocks where they are equal, transformers' per-layer settings where not."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tailcut.compress.skeleton import Skeleton
from tailcut.errors import InputError
from tailcut.shapes import KEY, overrides_of, plain, written

_PER_LAYER: Final = ("layer_types", "no_rope_layers", "mlp_layer_types")  # lists with an entry for each block
_NESTED: Final = "text_config"  # where multimodal families keep the text model's settings
Settings = Mapping[str, int]


def cut_config(config: Mapping[str, Any], settings: Sequence[Settings]) -> dict[str, Any]:
    """The config whose blocks are built with these settings on top of what they had; InputError if it cannot say so."""
    if config.get(_NESTED):
        return {**config, _NESTED: cut_config(config[_NESTED], settings)}
    shared = {name: value for own in settings for name, value in own.items() if name == "head_dim"}
    own = [dict(old) | dict(new) for old, new in zip(overrides_of(config, len(settings)), settings, strict=True)]
    for one in own:
        one.pop("head_dim", None)
    base = plain(config) | shared
    if all(one == own[0] for one in own):
        return base | own[0]
    return base | {KEY: written(dict(enumerate(own)))}


def config_without(config: Mapping[str, Any], skeleton: Skeleton, kept: Sequence[int]) -> dict[str, Any]:
    """The config of a model of these blocks only."""
    texts: Any = skeleton.model.config.get_text_config(decoder=True)
    if config.get(_NESTED):
        return {**config, _NESTED: config_without(config[_NESTED], skeleton, kept)}
    count = texts.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    new = plain(config) | {count: len(kept)}
    for name in _PER_LAYER:
        stated = getattr(texts, name, None)
        if isinstance(stated, list | tuple) and len(stated) == len(skeleton.blocks):
            new[name] = [stated[index] for index in kept]
    own = overrides_of(config, len(skeleton.blocks))
    entries = written({place: own[index] for place, index in enumerate(kept)})
    return new | ({KEY: entries} if entries else {})


def renamed(tensor: str, blocks_name: str, old: int, new: int) -> str:
    """Checkpoint name of a block's tensor once the block is number `new`."""
    leaf = re.escape(blocks_name.rpartition(".")[2])
    found, times = re.subn(rf"((?:^|\.){leaf}\.){old}\.", rf"\g<1>{new}.", tensor, count=1)
    if times != 1:
        raise InputError(
            f"{tensor}: does not name block {old} of {blocks_name}; blocks of this model cannot be renumbered"
        )
    return found
