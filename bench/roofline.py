"""How many bytes a decode step must read, and what that makes of its speed.

Decoding one token reads every weight once and the KV cache once, so a step cannot be faster than
bytes / bandwidth. What is counted: every matrix and vector of the model except an embedding table that is only
looked up (one row a token) when the output matrix is a separate one, plus the cached keys and values. An engine
that compresses sparse weights has a format of its own; a bitmask (values plus one bit a weight) stands in, and
the figure is then labelled an estimate.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailcut.errors import InputError
from tailcut.manifest import Manifest
from tailcut.results import BandwidthPoint, Roofline, Workload
from tailcut.shapes import KV_HEADS, overrides_of

_WORD = 4  # bytes of a float32 weight as the engines hold it
_HALF = 2  # and of a cached number, of those that keep float16
# Best-of-several on a shared machine still misses the true peak by some percent.
BANDWIDTH_SLACK = 1.15


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The numbers of a config.json that the byte count needs."""

    vocab: int
    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    tied: bool
    cached_heads: int  # key/value heads of all layers together: those of a cut model may differ


def read_dimensions(package: Path) -> Dimensions:
    """From config.json, under any of the names that Hugging Face families use."""
    path = package / "config.json"
    try:
        config = json.loads(path.read_bytes())
        config = config.get("text_config") or config
        heads = _first(config, "num_attention_heads", "n_head")
        hidden = _first(config, "hidden_size", "n_embd")
        layers, kv_heads = _first(config, "num_hidden_layers", "n_layer"), int(config.get(KV_HEADS) or heads)
        own = overrides_of(config, layers)
        return Dimensions(
            vocab=int(config["vocab_size"]),
            hidden=hidden,
            layers=layers,
            kv_heads=kv_heads,
            cached_heads=sum(one.get(KV_HEADS, kv_heads) for one in own),
            head_dim=int(config.get("head_dim") or hidden // heads),
            tied=bool(config.get("tie_word_embeddings", True)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot read the model's dimensions ({type(error).__name__}: {error})") from error


def _first(config: Mapping[str, Any], *names: str) -> int:
    found = [config[name] for name in names if config.get(name) is not None]
    return int(found[0] if found else config[names[0]])


def weight_bytes(manifest: Manifest, sizes: Dimensions, *, compressed: bool) -> int:
    """Weight bytes one step reads; with `compressed`, matrices that have zeros count as bitmasks."""
    looked_up = 0 if sizes.tied else sizes.vocab * sizes.hidden
    dense = (manifest.total_parameters - looked_up) * _WORD
    if not compressed:
        return dense
    return dense - sum(_saved(layer.shape[0] * layer.shape[1], layer.zeros) for layer in manifest.layers.values())


def _saved(size: int, zeros: int) -> int:
    """Bytes a bitmask saves over the dense matrix; a matrix it would not shrink is taken as dense."""
    return max(0, zeros * _WORD - (size + 7) // 8)


def kv_bytes(sizes: Dimensions, workload: Workload, cache: str = "") -> int:
    """Cached keys and values one step reads, at the mean length of the timed steps.

    cache: what the engine says of it, such as "float16, in place"; float32 where it does not say float16 or bfloat16.
    """
    length = workload.context - (workload.steps_per_visit - 1) / 2
    return int(position_bytes(sizes, cache) * length * workload.batch)


def position_bytes(sizes: Dimensions, cache: str) -> int:
    """Keys and values of one position of one sequence, over all layers; `cache`: as `kv_bytes` takes it."""
    word = _HALF if cache.startswith(("float16", "bfloat16")) else _WORD
    return 2 * sizes.cached_heads * sizes.head_dim * word


def roofline(
    weights: int, kv: int, *, estimate: bool, step_ms: float, bandwidth: BandwidthPoint, l3_bytes: int
) -> Roofline:
    """The rate that a median step of `step_ms` means, and its share of the measured read bandwidth."""
    total = weights + kv
    rate = total / (step_ms * 1e-3) / 1e9
    share = None if total < 2 * l3_bytes else rate / bandwidth.best_gb_per_s
    return Roofline(weights, kv, estimate, rate, share)


def broken(line: Roofline, role: str, bandwidth: BandwidthPoint, l3_bytes: int) -> str | None:
    """A sentence if the implied rate is beyond the machine's: then the measurement is wrong, not the machine fast.

    Up to the last-level cache's size of the bytes may come from cache, the rest cannot.
    """
    if line.share is None:
        return None
    from_memory = 1 - l3_bytes / line.bytes_per_token
    if line.gb_per_s * from_memory <= bandwidth.best_gb_per_s * BANDWIDTH_SLACK:
        return None
    who = f"with {bandwidth.threads} threads" if bandwidth.threads else "on its GPU"
    return (
        f"the {role} side's median step implies {line.gb_per_s:.1f} GB/s, this machine reads "
        f"{bandwidth.best_gb_per_s:.1f} GB/s {who}: refused as a broken measurement"
    )
