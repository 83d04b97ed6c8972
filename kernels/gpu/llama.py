"""What a Llama-family model is made of, read from its config: sizes, norms, rotary angles.

Llama, SmolLM2, Mistral: RMSNorm before attention and before the MLP, rotary positions over halves of a head,
grouped queries, SwiGLU, no biases. Anything else is refused by name, so that the lean loop never runs a model
it would get wrong.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from tailcut.errors import InputError
from tailcut.shapes import require_equal

FAMILIES: Final = ("llama", "mistral")
_REQUIRED: Final = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """The rope scaling of Llama 3.1 and later: low frequencies divided by `factor`, a smooth step between."""

    factor: float
    low: float
    high: float
    original: int  # positions the model was first trained on


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of one model. `window` is the number of positions a token may look back on, None for all."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    scaling: Llama3Scaling | None = None
    tied: bool = False
    window: int | None = None

    @property
    def qkv(self) -> int:
        """Rows of the stacked query, key and value matrix."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def block_shapes(self) -> Mapping[str, tuple[int, int]]:
        """(out, in) of the four matrices of a block, in the order in which they run."""
        return {
            "qkv": (self.qkv, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }


LLAMA_7B: Final = Architecture(4096, 11008, 32, 32, 32, 128, 32000, 1e-6)
LLAMA_3_8B: Final = Architecture(4096, 14336, 32, 32, 8, 128, 128256, 1e-5, 500000.0)
MISTRAL_7B: Final = Architecture(4096, 14336, 32, 32, 8, 128, 32000, 1e-5, window=4096)
SHAPES: Final[Mapping[str, Architecture]] = {
    "llama-7b": LLAMA_7B,
    "llama-3-8b": LLAMA_3_8B,
    "mistral-7b": MISTRAL_7B,
    "smollm2-135m": Architecture(576, 1536, 30, 9, 3, 64, 49152, 1e-5, 100000.0, tied=True),
}


def read_architecture(config: Mapping[str, Any]) -> Architecture:
    """A HF config -> sizes; InputError for a family or a setting that the lean loop does not run."""
    _refuse_other_models(config)
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    rope = _rope(config)
    return Architecture(
        hidden=hidden,
        intermediate=int(config["intermediate_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        vocabulary=int(config["vocab_size"]),
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope["rope_theta"]),
        scaling=_scaling(rope),
        tied=bool(config.get("tie_word_embeddings", False)),
        window=_window(config),
    )


def rotary_table(architecture: Architecture, positions: int, device: torch.device) -> Tensor:
    """cos and sin of every angle, float32 [2, positions, head_dim / 2].

    angle(p, i) = p * theta^(-2 i / head_dim), worked out in float64 (Su et al. 2021, eq. 15).
    """
    frequencies = _frequencies(architecture)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).to(device, torch.float32)


def _frequencies(architecture: Architecture) -> Tensor:
    exponents = torch.arange(0, architecture.head_dim, 2, dtype=torch.float64) / architecture.head_dim
    plain = architecture.rope_theta**-exponents
    scaling = architecture.scaling
    if scaling is None:
        return plain
    # turns over the original context, from 0 at `low` (divided by factor) to 1 at `high` (left alone)
    turns = scaling.original * plain / (2 * math.pi)
    share = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return share * plain + (1 - share) * plain / scaling.factor


def _refuse_other_models(config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(
            f"config.json: model_type {family!r} does not run in the GPU loop; {' and '.join(FAMILIES)} do"
        )
    missing = [key for key in _REQUIRED if not config.get(key)]
    if missing:
        raise InputError(f"config.json: {', '.join(missing)} is missing")
    require_equal(config, "the GPU loop")
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise InputError("config.json: attention_bias and mlp_bias do not run in the GPU loop")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"config.json: hidden_act {config['hidden_act']!r} does not run in the GPU loop; silu does")


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 writes `rope_parameters`, earlier ones `rope_theta` and `rope_scaling`."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = found.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = found.get("rope_type") or found.get("type") or "default"
    return {**found, "rope_theta": theta, "rope_type": kind}


def _scaling(rope: Mapping[str, Any]) -> Llama3Scaling | None:
    if rope["rope_type"] == "default":
        return None
    if rope["rope_type"] != "llama3":
        raise InputError(
            f"config.json: rope_type {rope['rope_type']!r} does not run in the GPU loop; default, llama3 do"
        )
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [key for key in keys if key not in rope]
    if missing:
        raise InputError(f"config.json: rope_type llama3 needs {', '.join(missing)}")
    return Llama3Scaling(float(rope[keys[0]]), float(rope[keys[1]]), float(rope[keys[2]]), int(rope[keys[3]]))


def _window(config: Mapping[str, Any]) -> int | None:
    window = config.get("sliding_window")
    return int(window) if window else None
