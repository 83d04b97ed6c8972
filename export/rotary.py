"""Inverse frequencies of rotary embeddings and their context extensions, in float32 as the models were trained.

    default   theta^(-2 i / d)                                         (Su et al. 2021)
    linear    the same divided by `factor`                             (Chen et al. 2023)
    llama3    long wavelengths divided by `factor`, smooth in between  (Llama 3.1)
    yarn      by-parts interpolation, cos and sin scaled               (Peng et al. 2023)
    longrope  per-channel factors, short and long                      (Ding et al. 2024)

Left out: "dynamic" NTK, whose base follows the running sequence length, so cached keys go stale.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError
from tailcut.export.settings import Config, number, rope_settings
from tailcut.export.spec import Rotary

Vector = npt.NDArray[np.float32]


def rotary(config: Config, head_dim: int, layer_type: str | None = None) -> Rotary:
    """The rotary embedding that a config describes for heads of `head_dim` channels."""
    settings = rope_settings(config, layer_type)
    channels = int(head_dim * float(settings["partial_rotary_factor"]))
    if channels < 2 or channels % 2 or channels > head_dim:
        raise InputError(f"config.json: rotary embedding over {channels} of {head_dim} channels is not possible")
    theta = number(settings, "rope_theta")
    exponent = np.arange(0, channels, 2, dtype=np.float32) / np.float32(channels)
    plain: Vector = np.float32(1.0) / np.power(np.float32(theta), exponent, dtype=np.float32)
    kind = str(settings["rope_type"])
    if kind not in _KINDS:
        raise InputError(f"config.json: rope_type {kind!r} is not exported; these are: {', '.join(sorted(_KINDS))}")
    return _KINDS[kind](plain, settings, config, theta)


def _default(plain: Vector, settings: Mapping[str, Any], config: Config, theta: float) -> Rotary:
    return Rotary(_tuple(plain))


def _linear(plain: Vector, settings: Mapping[str, Any], config: Config, theta: float) -> Rotary:
    return Rotary(_tuple(plain / np.float32(number(settings, "factor"))))


def _llama3(plain: Vector, settings: Mapping[str, Any], config: Config, theta: float) -> Rotary:
    """Wavelengths above L/low are divided by factor, below L/high kept, between them blended."""
    factor, length = number(settings, "factor"), _trained_length(settings, config)
    low, high = number(settings, "low_freq_factor"), number(settings, "high_freq_factor")
    wavelength = 2 * math.pi / plain
    blend = (length / wavelength - low) / (high - low)
    smooth = (1 - blend) * plain / factor + blend * plain
    scaled = np.where(wavelength > length / low, plain / factor, plain)
    between = (wavelength <= length / low) & (wavelength >= length / high)
    return Rotary(_tuple(np.where(between, smooth, scaled)))


def _yarn(plain: Vector, settings: Mapping[str, Any], config: Config, theta: float) -> Rotary:
    """Channels that turn fewer than beta_slow times in training are interpolated, more than beta_fast kept."""
    length = _trained_length(settings, config)
    factor = number(settings, "factor", number(config, "max_position_embeddings") / length)
    channels = 2 * plain.size

    def turning_point(rotations: float) -> float:
        return channels * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = turning_point(settings.get("beta_fast") or 32), turning_point(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    ramp = np.clip((np.arange(plain.size, dtype=np.float32) - low) / ((high - low) or 0.001), 0, 1)
    return Rotary(_tuple(plain / factor * ramp + plain * (1 - ramp)), scale=_yarn_scale(settings, factor))


def _yarn_scale(settings: Mapping[str, Any], factor: float) -> float:
    if settings.get("attention_factor") is not None:
        return number(settings, "attention_factor")

    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    above, below = settings.get("mscale"), settings.get("mscale_all_dim")
    return temperature(above) / temperature(below) if above and below else temperature(1.0)


def _longrope(plain: Vector, settings: Mapping[str, Any], config: Config, theta: float) -> Rotary:
    """Per-channel divisors, one set up to the trained length and one beyond it."""
    original = int(_trained_length(settings, config))
    factor = number(settings, "factor", number(config, "max_position_embeddings") / original)
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short, long = (_factors(settings, key, plain.size) for key in ("short_factor", "long_factor"))
    return Rotary(_tuple(plain / short), number(settings, "attention_factor", scale), _tuple(plain / long), original)


def _trained_length(settings: Mapping[str, Any], config: Config) -> float:
    # Phi-3 writes it beside the rotary settings, and that place wins in transformers
    inside = number(settings, "original_max_position_embeddings", number(config, "max_position_embeddings"))
    return number(config, "original_max_position_embeddings", inside)


def _factors(settings: Mapping[str, Any], key: str, count: int) -> Vector:
    found = settings.get(key)
    if not isinstance(found, list) or len(found) != count:
        raise InputError(f"config.json: longrope needs {count} numbers in {key}")
    return np.asarray(found, np.float32)


def _tuple(values: npt.NDArray[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values.astype(np.float32))


_KINDS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
