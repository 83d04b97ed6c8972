"""Quantisation modifiers -> bits of the weights, who rounds, and bits of the activations."""

import re
from typing import Any, Final

from tailcut.errors import InputError
from tailcut.recipe_import._parts import Part, number, unknown, words
from tailcut.recipe_import._reading import Read

QUANTISERS: Final = {
    "GPTQModifier": "gptq",
    "QuantizationModifier": "rtn",
    "LegacyQuantizationModifier": "rtn",
    "vLLMQuantizationModifier": "rtn",
}
BITS: Final = (8, 4, 3, 2)
GROUP: Final = 128  # columns that share a scale below 8 bits
_PRESET: Final = re.compile(r"W([2348])A(8|16)(?:_ASYM)?", re.IGNORECASE)
_READ: Final = {
    "config_groups",
    "scheme",
    "targets",
    "ignore",
    "block_size",
    "dampening_frac",
    "sequential_update",
    "start",
    "end",
}


def quantising(read: Read) -> Part:
    """One scheme for all weights; several schemes, or one that tailcut's grids cannot say, are named."""
    found, wrong = _scheme(read)
    wrong += unknown(read, _READ)
    ignore = [word for word in words(read, "ignore") if "lm_head" not in word]
    if ignore:
        wrong.append(
            f"{read.where}, ignore {', '.join(ignore)[:120]}: a recipe gives bits to every matrix of the blocks"
        )
    for key, ours in (("block_size", 128), ("dampening_frac", 0.01)):
        if read.settings.get(key) not in (None, ours):
            wrong.append(f"{read.where}, {key}: tailcut's GPTQ uses {ours}")
    if found is None:
        return Part(unsupported=tuple(wrong))
    weights, activations = found
    bits = weights.get("num_bits")
    if weights.get("type", "int") != "int" or isinstance(bits, bool) or bits not in BITS:
        shown = f"{bits} bits of type {weights.get('type', 'int')}"[:60]
        wrong.append(
            f"{read.where}, weights of {shown}: tailcut rounds to integers of {', '.join(map(str, BITS))} bits"
        )
        return Part(unsupported=tuple(wrong))
    settings: dict[str, Any] = {"bits": float(bits), "bit_choices": [int(bits)], "quantiser": QUANTISERS[read.name]}
    wrong += _of_weights(read, weights, int(bits)) + _of_activations(read, activations, settings)
    return Part(settings, None, (f"{read.where}: {bits} bits, quantiser {settings['quantiser']}",), tuple(wrong))


def _scheme(read: Read) -> tuple[tuple[dict[str, Any], Any] | None, list[str]]:
    """(weights, activations) of the only scheme, and sentences on what cannot be read as one."""
    scheme, groups = read.settings.get("scheme"), read.settings.get("config_groups")
    if isinstance(scheme, str):
        match = _PRESET.fullmatch(scheme)
        if match is None:
            return None, [
                f"{read.where}, scheme {scheme[:40]!r}: only W8A8, W8A16, W4A16 and their like are read; set bits by hand"
            ]
        symmetric = not scheme.upper().endswith("_ASYM")
        weights = {"num_bits": int(match[1]), "symmetric": symmetric}
        return (weights, {"num_bits": 8, "dynamic": True} if match[2] == "8" else None), []
    if isinstance(groups, dict) and len(groups) == 1:
        scheme = next(iter(groups.values()))
    elif isinstance(groups, dict) and groups:
        return None, [
            f"{read.where}, {len(groups)} config groups: a recipe shares one mean number of bits out; set bits by hand"
        ]
    if not isinstance(scheme, dict) or not isinstance(scheme.get("weights"), dict):
        return None, [f"{read.where}: it states no scheme of weights that is read here; set bits and quantiser by hand"]
    wrong = []
    if scheme.get("output_activations") is not None:
        wrong.append(
            f"{read.where}, output_activations: only the inputs of a product are ever rounded in tailcut's kernels"
        )
    return (scheme["weights"], scheme.get("input_activations")), wrong


def _of_weights(read: Read, weights: dict[str, Any], bits: int) -> list[str]:
    wrong = []
    if weights.get("symmetric") is False:
        wrong.append(f"{read.where}, symmetric false: tailcut's grids are symmetric, zero is exactly zero")
    strategy, group = weights.get("strategy"), number(Read(read.stage, read.name, weights), "group_size")
    if bits == 8 and strategy not in (None, "channel"):
        wrong.append(f"{read.where}, strategy {str(strategy)[:20]}: 8 bits have one scale a row here")
    if bits < 8 and (strategy not in (None, "group") or group not in (None, float(GROUP))):
        wrong.append(
            f"{read.where}, scales by {str(strategy)[:20]} {group or ''}: below 8 bits a scale belongs to {GROUP} columns here"
        )
    if weights.get("actorder"):
        wrong.append(f"{read.where}, actorder: tailcut's GPTQ goes through the columns in their order")
    return wrong


def _of_activations(read: Read, activations: Any, settings: dict[str, Any]) -> list[str]:  # noqa: ANN401  (plain data)
    if activations is None:
        settings["activation_bits"] = 16
        return []
    if not isinstance(activations, dict):
        raise InputError(f"{read.where}, input_activations: expected a mapping, got {str(activations)[:40]!r}")
    if activations.get("num_bits") != 8 or activations.get("type", "int") != "int":
        return [
            f"{read.where}, input_activations: tailcut's kernels round them to 8 or 16 bits as integers; set activation_bits"
        ]
    settings["activation_bits"] = 8
    if activations.get("dynamic") is True:
        return []
    return [f"{read.where}, static input_activations: tailcut's kernels take the scale of every row when it comes"]
