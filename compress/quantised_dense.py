"""A quantised directory as `compressed-tensors` stores one, for readers that know no sparsity: transformers and vLLM.

The integers that `tailcut compress` decided on are written as they are, nothing is rounded again:

    pack-quantized   <module>.weight_packed int32 [out, ceil(in * bits / 32)], the first column in the lowest bits, each
                     value plus 2^(bits - 1); <module>.weight_shape int64 [2]
    int-quantized    <module>.weight int8 [out, in], for readers that also round activations to 8 bits (W8A8)

and <module>.weight_scale float32 [out, 1] at 8 bits, [out, in / group] at 4. Values of 3 and 2 bits are stored as 4. The
format wants groups that divide the columns: where 128 does not, all groups become the largest power of two that divides
every matrix's columns and scales are repeated, so the weights stay what they were. Zeros are kept as zeros and take their
bytes: the format's sparse kinds are gone (compressed-tensors 0.15).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from tailcut.bitmask import Array
from tailcut.checkpoint import INDEX_NAME, SINGLE_NAME, Checkpoint, write_index, write_shard
from tailcut.compress.companions import copy_companions
from tailcut.compress.discovery import find_linears
from tailcut.errors import InputError
from tailcut.files import new_directory, write_file
from tailcut.manifest import try_manifest
from tailcut.progress import Reporter, silent
from tailcut.quantised import GROUP, Integers, Scales, container
from tailcut.sidecar import Integral, Sidecars, open_sidecars

Activations = Literal["float", "int8"]
SMALLEST_GROUP: Final = 32  # columns; readers have no kernels for smaller ones
_CONFIG: Final = "config.json"


@dataclass(frozen=True, slots=True)
class Form:
    """How the matrices are written: `group` columns share a 4-bit scale; `activations` int8 chooses int-quantized."""

    group: int = GROUP
    activations: Activations = "float"

    @property
    def format(self) -> str:
        return "pack-quantized" if self.activations == "float" else "int-quantized"


def write_compressed_tensors(
    model_dir: Path, out: Path, *, activations: Activations = "float", report: Reporter = silent
) -> dict[str, Any]:
    """Write MODEL's integers to the directory `out`; its `quantization_config`.

    activations: "int8" tells the reader to round them too, one scale a token; it needs 8 bits everywhere. InputError where
    the directory has no integers, its weights are no longer theirs, or the format cannot hold them.
    """
    checkpoint = Checkpoint(model_dir)
    sidecars = open_sidecars(model_dir, try_manifest(model_dir))
    form = choose_form(model_dir, checkpoint, sidecars, activations)
    config = quantization_config(sidecars, form, _left_alone(checkpoint, sidecars))
    with new_directory(out) as directory:
        _write_shards(checkpoint, sidecars, form, directory, report)
        copy_companions(model_dir, directory)
        settings = dict(checkpoint.config) | {"quantization_config": config}
        write_file(directory / _CONFIG, (json.dumps(settings, indent=1) + "\n").encode())
    return config


def choose_form(model_dir: Path, checkpoint: Checkpoint, sidecars: Sidecars, activations: Activations) -> Form:
    """One form that every quantised matrix fits, or InputError."""
    if not sidecars:
        raise InputError(
            f"{model_dir}: holds no integers to write as compressed-tensors; "
            "compress the model with bits first (`tailcut allocate --bits 4`)"
        )
    tied = [module for module in sidecars if f"{module}.weight" not in checkpoint]
    if tied:
        raise InputError(
            f"{model_dir}: {tied[0]}.weight is not stored under its own name; compressed-tensors needs it so"
        )
    packed = [module for module in sidecars if sidecars.bits(module) != 8]
    if packed and activations == "int8":
        raise InputError(
            f"{packed[0]} has {sidecars.bits(packed[0])} bits; 8-bit activations need 8-bit weights everywhere"
        )
    columns = [sidecars.layers[module].shape[1] for module in packed]
    group = math.gcd(GROUP, *columns)
    if group < SMALLEST_GROUP:
        odd = next(module for module in packed if sidecars.layers[module].shape[1] % SMALLEST_GROUP)
        raise InputError(
            f"{odd} has {sidecars.layers[odd].shape[1]} columns; compressed-tensors readers want 4-bit groups of at least "
            f"{SMALLEST_GROUP} columns that divide them; give this matrix 8 bits"
        )
    return Form(group, activations)


def quantization_config(sidecars: Sidecars, form: Form, left_alone: tuple[str, ...]) -> dict[str, Any]:
    """What config.json says under that name, in compressed-tensors' own schema (0.15 and later)."""
    by_bits: dict[int, list[str]] = {}
    for module in sidecars:
        by_bits.setdefault(8 if sidecars.bits(module) == 8 else 4, []).append(module)
    groups = {}
    for number, (bits, modules) in enumerate(sorted(by_bits.items(), reverse=True)):
        targets = ["Linear"] if len(by_bits) == 1 else sorted(modules)
        groups[f"group_{number}"] = _scheme(bits, targets, form)
    return {
        "quant_method": "compressed-tensors",
        "format": form.format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(left_alone),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _scheme(bits: int, targets: list[str], form: Form) -> dict[str, Any]:
    shared: dict[str, Any] = {"type": "int", "symmetric": True}
    grouped = {"strategy": "group", "group_size": form.group} if bits == 4 else {"strategy": "channel"}
    dynamic = shared | {"num_bits": 8, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": shared | {"num_bits": bits, "dynamic": False} | grouped,
        "input_activations": dynamic if form.activations == "int8" else None,
        "output_activations": None,
        "format": form.format,
    }


def _left_alone(checkpoint: Checkpoint, sidecars: Sidecars) -> tuple[str, ...]:
    """Linear modules without integers: the output head, and matrices of the blocks whose plan has no bits."""
    blocks = [linear.name for linear in find_linears(checkpoint) if linear.name not in sidecars]
    return ("lm_head", *blocks)


def _write_shards(checkpoint: Checkpoint, sidecars: Sidecars, form: Form, directory: Path, report: Reporter) -> None:
    files, written = checkpoint.files, []
    for number, shard in enumerate(files):
        report("compressed-tensors", number, len(files), shard.name)
        tensors: dict[str, Array] = {}
        for name in checkpoint.names_in(shard):
            module = name.removesuffix(".weight")
            stored = checkpoint.read(name)
            if module == name or module not in sidecars:
                tensors[name] = stored
                continue
            matrix = sidecars.read(module)
            _require_current(module, stored, matrix)
            tensors |= {f"{module}.{part}": array for part, array in written_form(matrix, form).items()}
        written.append(directory / shard.name)
        write_shard(written[-1], tensors)
        checkpoint.release()
    if [path.name for path in written] != [SINGLE_NAME]:
        write_index(directory, written, INDEX_NAME)
    report("compressed-tensors", len(files), len(files))


def _require_current(module: str, stored: Array, matrix: Integral) -> None:
    expected = matrix.stored(stored.dtype)
    if stored.shape != expected.shape or not np.array_equal(stored, expected):
        raise InputError(f"{module}: the stored weights are not those of its integers; compress the model again")


def written_form(matrix: Integral, form: Form) -> dict[str, Array]:
    """The tensors of one matrix, by the end of their names."""
    if form.activations == "int8":
        return {"weight": matrix.q, "weight_scale": matrix.scales[:, None]}
    bits: Literal[4, 8] = 8 if container(matrix.bits) == "int8" else 4
    return {
        "weight_packed": pack_int32(matrix.q, bits),
        "weight_scale": regroup(matrix.scales, matrix.q.shape[1], form.group),
        "weight_shape": np.array(matrix.q.shape, np.int64),
    }


def regroup(scales: Scales, columns: int, group: int) -> Scales:
    """Scales [out] or [out, ceil(columns / 128)] -> [out, 1] or [out, columns / group], each repeated."""
    if scales.ndim == 1:
        return scales[:, None]
    if columns % group or GROUP % group:
        raise ValueError(f"groups of {group} do not divide {columns} columns and {GROUP}")
    return np.ascontiguousarray(np.repeat(scales, GROUP // group, axis=1)[:, : columns // group])


def pack_int32(q: Integers, bits: Literal[4, 8]) -> npt.NDArray[np.int32]:
    """q int8 [out, in] in -2^(bits-1)..2^(bits-1)-1 -> int32 [out, ceil(in * bits / 32)]; padding is 0 bits."""
    unsigned = (q.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    words = -(-q.shape[1] * bits // 32)
    padded = np.pad(unsigned, ((0, 0), (0, words * (32 // bits) - q.shape[1])))
    halves = padded if bits == 8 else padded[:, 0::2] | padded[:, 1::2] << np.uint8(4)
    return np.ascontiguousarray(halves).view("<i4").astype(np.int32, copy=False)
