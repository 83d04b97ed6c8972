"""compressed-tensors checkpoints: sparse-bitmask and sparse-24-bitmask, with integers or float8 inside or not.

The library's releases before 0.15 wrote them and no release since reads them. A module `m` is stored as

    m.compressed   its values that are not zero, row-major; two of every four for sparse-24-bitmask, [out, in / 2]
    m.bitmask      uint8 [out, ceil(in / 8)], bit j of byte b is column 8 b + j
    m.shape        int64, the two sizes; m.row_offsets (sparse-bitmask): where each row's values begin

and, if it is quantised too, m.weight_scale with the values as int8 or float8, or m.weight_packed with integers of 2 to 8
bits in int32 words. Integers become q * scale in the scale's type, as the library itself decompresses them: zeros stay zeros.
Not read: marlin-24, 4-bit floats, block scales, packed zero points, rotated weights; scales of activations are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from tailcut.bitmask import Array, Packed, unpack
from tailcut.checkpoint import DTYPES, Checkpoint, is_finite
from tailcut.compress.importers import Brought, Details, ImportOptions
from tailcut.compress.importers._integers import Scaled, dequantised, unpack_words
from tailcut.compress.importers._reading import (
    QUANTISED_BY,
    open_checkpoint,
    quantised_by,
    rewrite,
    try_config,
    write_config,
)
from tailcut.compress.importers.huggingface import origin
from tailcut.errors import InputError
from tailcut.progress import Reporter

SUMMARY: Final = "compressed-tensors checkpoints: sparse-bitmask, sparse-24-bitmask, int8, float8, packed integers"
MAKES: Final[Literal["model", "scores"]] = "model"
SPARSE: Final = ("sparse-bitmask", "sparse-24-bitmask")
QUANTISED: Final = ("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision")
_MASKED: Final = ("compressed", "bitmask", "shape")
_OF_WEIGHTS: Final = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "weight_packed")
_OF_ACTIVATIONS: Final = (
    *("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point"),
    *("q_scale", "k_scale", "v_scale"),
)
KEYS: Final = (*QUANTISED_BY, "sparsity_config")


@dataclass(frozen=True, slots=True)
class Settings:
    """What config.json says: the sparse format ("dense": none), the quantised one, and the bits of packed integers."""

    sparse: str
    quantised: str
    bits: tuple[int, ...]

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(name for name in (self.sparse, self.quantised) if name != "dense")) or "dense"


def recognises(source: Path) -> str | None:
    """A directory whose config says that compressed-tensors wrote it."""
    config = try_config(source)
    if config is None or quantised_by(config) != "compressed-tensors":
        return None
    try:
        return f"a compressed-tensors checkpoint ({read_settings(source, config)})"
    except InputError:
        return "a compressed-tensors checkpoint"


def bring_in(source: Path, directory: Path, options: ImportOptions, report: Reporter) -> Brought:
    """Write the weights dense; `options` is not used."""
    config = try_config(source) or {}
    modules = Modules(open_checkpoint(source), read_settings(source, config))
    rewrite(modules.checkpoint, directory, modules.names(), modules.read_finite, report)
    write_config(directory, config, KEYS)
    details: Details = {
        "format": str(modules.settings),
        "masked_matrices": len(modules.masked),
        "scaled_matrices": modules.scaled,
    }
    integers = "weights were integers or float8 and are stored as q * scale: their quality is the quantised model's"
    return Brought(origin(modules.checkpoint), details, (integers,) if modules.scaled else ())


def read_settings(source: Path, config: Mapping[str, Any]) -> Settings:
    """What the config says; InputError names a format that is not read."""
    settings = next((found for key in QUANTISED_BY if isinstance(found := config.get(key), Mapping)), {})
    sparsity = settings.get("sparsity_config") or config.get("sparsity_config") or {}
    groups = settings.get("config_groups") or {}
    if not isinstance(sparsity, Mapping) or not isinstance(groups, Mapping):
        raise InputError(f"{source}/config.json: sparsity_config and config_groups must be objects")
    if settings.get("transform_config"):
        raise InputError(f"{source}: its weights are rotated (transform_config), which is not read")
    found = Settings(str(sparsity.get("format") or "dense"), str(settings.get("format") or "dense"), _bits(groups))
    for name, known in ((found.sparse, ("dense", *SPARSE)), (found.quantised, (*QUANTISED, *SPARSE))):
        if name not in known:
            raise InputError(
                f"{source}: the compressed-tensors format {name!r} is not read; these are: {', '.join(known)}"
            )
    return found


def _bits(groups: Mapping[str, Any]) -> tuple[int, ...]:
    weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    bits = {entry.get("num_bits") for entry in weights if isinstance(entry, Mapping)}
    return tuple(sorted(number for number in bits if isinstance(number, int) and 2 <= number <= 8))


class Modules:
    """The weights of a checkpoint by the names they have when they are dense."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        stored = checkpoint.stored
        bases = {name.rpartition(".")[0] for name in stored if name.endswith(".bitmask")}
        self.masked = {base for base in bases if all(f"{base}.{part}" in stored for part in _MASKED)}
        packed = {name.rpartition(".")[0] for name in stored if name.endswith(".weight_packed")}
        self._weights = {tensor_of(base): base for base in sorted(self.masked | packed)}
        self.scaled = sum(name.endswith(".weight_scale") for name in stored)
        _refuse_others(checkpoint)

    def names(self) -> dict[Path, list[str]]:
        """Dense tensor names by the file that holds their values."""
        found: dict[Path, list[str]] = {file: [] for file in self.checkpoint.files}
        hidden = {f"{base}.{part}" for base in self.masked for part in (*_MASKED, "row_offsets")}
        left_out = tuple(f".{part}" for part in (*_OF_WEIGHTS, *_OF_ACTIVATIONS))
        for name, info in self.checkpoint.stored.items():
            if name not in hidden and not name.endswith(left_out):
                found[info.file].append(name)
        for name, base in self._weights.items():
            part = "compressed" if base in self.masked else "weight_packed"
            if name in self.checkpoint.stored:
                raise InputError(f"{self.checkpoint.directory}: {name} is stored both dense and as {base}.{part}")
            found[self.checkpoint.stored[f"{base}.{part}"].file].append(name)
        return {file: sorted(names) for file, names in found.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of the dense tensor, as its mask or its own header has them."""
        base = self._weights.get(name)
        if base is None:
            return self.checkpoint.stored[name].shape
        return self._sizes(base, "shape" if base in self.masked else "weight_shape")

    def read(self, name: str) -> Array:
        """One dense tensor; InputError where its parts do not belong together."""
        base = self._weights.get(name, name.removesuffix(".weight"))
        if base in self.masked:
            array = self._unmasked(base)
        elif f"{base}.weight_packed" in self.checkpoint.stored:
            array = self._unpacked(base)
        else:
            array = self.checkpoint.read_stored(name)
        if f"{base}.weight_scale" not in self.checkpoint.stored or not name.endswith("weight") or not _is_narrow(array):
            return array
        return dequantised(array, self._scaled(base), f"{self.checkpoint.directory}: {base}")

    def form(self, module: str) -> tuple[int, int, str]:
        """(bits a weight, bytes, kind) of a module's weight as it is stored."""
        stored, base = self.checkpoint.stored, self._weights.get(f"{module}.weight")
        parts = [f"{module}.weight"]
        if base is not None:
            names = (*_MASKED, "row_offsets") if base in self.masked else ("weight_packed",)
            parts = [f"{base}.{part}" for part in names if f"{base}.{part}" in stored]
        size = sum(stored[part].stop - stored[part].start for part in parts)
        if base is not None and base not in self.masked:
            return self.settings.bits[0] if self.settings.bits else 0, size, "packed integers"
        bits = 8 * DTYPES[stored[parts[0]].dtype].itemsize
        return bits, size, "bitmask" if base is not None else "dense"

    def read_finite(self, name: str) -> Array:
        """The same, refusing NaN and infinity."""
        array = self.read(name)
        if array.dtype.kind in "fV" and not is_finite(array):
            raise InputError(
                f"{self.checkpoint.directory}: {name} holds NaN or infinite weights; get the checkpoint again"
            )
        return array

    def _unmasked(self, base: str) -> Array:
        where, sizes = f"{self.checkpoint.directory}: {base}", self._sizes(base, "shape")
        shape = sizes if len(sizes) == 2 else (1, *sizes)
        values, mask = self._part(base, "compressed"), self._part(base, "bitmask")
        wanted = (shape[0], (shape[1] + 7) // 8)
        if mask.dtype != np.uint8 or mask.size != prod(wanted):
            raise InputError(f"{where}: a bitmask of {mask.dtype} {list(mask.shape)} does not belong to {list(sizes)}")
        if self.settings.sparse == SPARSE[1] and values.size * 2 != prod(sizes):
            raise InputError(f"{where}: {values.size} values are not half of {list(sizes)}, as {SPARSE[1]} has")
        packed = Packed(values.reshape(-1), mask.reshape(wanted).astype(np.uint8, copy=False), (shape[0], shape[1]))
        dense = unpack(packed).reshape(sizes)
        if f"{base}.row_offsets" in self.checkpoint.stored:
            offsets = self._part(base, "row_offsets")
            if not np.array_equal(offsets.reshape(-1), packed.row_offsets):
                raise InputError(f"{where}: its row offsets do not belong to its bitmask; copy the checkpoint again")
        return dense

    def _unpacked(self, base: str) -> Array:
        sizes = self._sizes(base, "weight_shape")
        return unpack_words(
            self._part(base, "weight_packed"), sizes, self.settings.bits, f"{self.checkpoint.directory}: {base}"
        )

    def _sizes(self, base: str, part: str) -> tuple[int, ...]:
        info = self.checkpoint.stored.get(f"{base}.{part}")
        where = f"{self.checkpoint.directory}: {base}.{part}"
        if info is None or info.dtype not in ("I64", "I32") or prod(info.shape) not in (1, 2):
            raise InputError(f"{where} must hold one or two integers; copy the checkpoint again")
        sizes = tuple(
            int(size) for size in np.asarray(self.checkpoint.read_stored(f"{base}.{part}"), np.int64).reshape(-1)
        )
        if min(sizes) < 0 or prod(sizes) > 1 << 40:
            raise InputError(f"{where} claims {list(sizes)}, which no weight has")
        return sizes

    def _part(self, base: str, part: str) -> Array:
        return self.checkpoint.read_stored(f"{base}.{part}")

    def _scaled(self, base: str) -> Scaled:
        parts = {part: f"{base}.weight_{part}" for part in ("scale", "zero_point", "g_idx")}
        return Scaled(**{k: self.checkpoint.read_stored(n) for k, n in parts.items() if n in self.checkpoint.stored})


def tensor_of(base: str) -> str:
    """The tensor that a module's parts stand for; old releases named the parts after the tensor itself."""
    return base if base.endswith(".weight") else f"{base}.weight"


def _is_narrow(array: Array) -> bool:
    """Integers or float8, which mean nothing without their scale."""
    return array.dtype.itemsize == 1


def _refuse_others(checkpoint: Checkpoint) -> None:
    for name, info in checkpoint.stored.items():
        if name.endswith((".scale_packed", ".weight_global_scale", ".meta")):
            raise InputError(f"{info.file}: {name} belongs to marlin-24 or 4-bit floats, which are not read")
        if name.endswith(".compressed") and f"{name.rpartition('.')[0]}.bitmask" not in checkpoint.stored:
            raise InputError(f"{info.file}: {name} has no bitmask; the checkpoint is incomplete, copy it again")
        if info.dtype not in DTYPES:
            raise InputError(f"{info.file}: {name} has the type {info.dtype}, which is not read")
