"""The exact integers of a quantised model directory, beside weights that any `from_pretrained` loads.

A directory's weights are q * scale rounded to the checkpoint's dtype, which may not hold the product exactly (bfloat16
has 8 significant bits). What was decided lies beside them, one file for each decoder block with quantised matrices,
`quantised-00001-of-00030.safetensors`, listed in the manifest with its hash:

    <module>.q       int8 [out, in] at 8 bits; uint8 [out, ceil(in / 2)] of nibbles below (tailcut.quantised)
    <module>.scales  float32 [out] at 8 bits, [out, ceil(in / 128)] below
    <module>.errors  float64 [2]: the error and output_error of tailcut.manifest.RealisedLayer, NaN where not measured

Bits are the manifest's. Everything is checked before it is believed: an export would otherwise pass damage on silently.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tailcut.allocation import Bits
from tailcut.bitmask import Array
from tailcut.checkpoint import read_shard
from tailcut.errors import InputError
from tailcut.files import sha256_file
from tailcut.manifest import Manifest, RealisedLayer
from tailcut.quantised import (
    LARGEST,
    Integers,
    Scales,
    container,
    dequantise,
    pack_nibbles,
    scales_shape,
    unpack_nibbles,
)

PREFIX: Final = "quantised-"


@dataclass(frozen=True, slots=True)
class Integral:
    """One quantised matrix W = q * scale: q int8 [out, in] with |q| <= LARGEST[bits], scales as its bits ask."""

    q: Integers
    scales: Scales
    bits: Bits

    def dense(self) -> npt.NDArray[np.float32]:
        """W float32 [out, in]."""
        return dequantise(self.q, self.scales)

    def stored(self, dtype: np.dtype[Any]) -> Array:
        """W [out, in] as the model directory holds it: rounded to the checkpoint's dtype."""
        with np.errstate(over="ignore"):  # the caller asks whether it is finite
            return self.dense().astype(dtype)


@dataclass(frozen=True, slots=True)
class Errors:
    """What cutting and rounding changed: see `RealisedLayer`."""

    error: float
    output_error: float | None


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The quantised matrices of a directory, read one at a time; none for a directory without."""

    directory: Path = Path()
    layers: Mapping[str, RealisedLayer] = field(default_factory=dict)  # of the manifest, those with bits
    tensors: Mapping[str, Array] = field(default_factory=dict)

    def __contains__(self, module: object) -> bool:
        return module in self.layers

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def bits(self, module: str) -> Bits | None:
        """Bits of one matrix; None where it is not quantised."""
        return self.layers[module].plan.bits if module in self.layers else None

    def read(self, module: str) -> Integral:
        """One matrix, checked: shapes, range of the integers, finite scales."""
        layer = self.layers[module]
        if layer.plan.bits is None:
            raise ValueError(f"{module} has no bits")
        return _read(f"{self.directory}: {module}", self.tensors, module, layer.shape, layer.plan.bits)


def file_name(number: int, blocks: int) -> str:
    """The sidecar of block `number` (from 0) of `blocks`."""
    return f"{PREFIX}{number + 1:05d}-of-{blocks:05d}.safetensors"


def tensors_of(module: str, matrix: Integral, errors: Errors) -> dict[str, Array]:
    """What a sidecar stores of one matrix."""
    q = matrix.q if container(matrix.bits) == "int8" else pack_nibbles(matrix.q)
    unknown = math.nan if errors.output_error is None else errors.output_error
    return {f"{module}.q": q, f"{module}.scales": matrix.scales, f"{module}.errors": np.array([errors.error, unknown])}


def errors_of(module: str, tensors: Mapping[str, Array]) -> Errors:
    """The errors that a sidecar states for one matrix."""
    stated = _part(tensors, module, "errors", "sidecar", np.float64, (2,))
    error, output_error = (float(value) for value in stated)
    return Errors(error, None if math.isnan(output_error) else output_error)


def open_sidecars(directory: Path, manifest: Manifest | None) -> Sidecars:
    """The quantised matrices that the manifest of a model directory names; InputError if a file is missing or changed."""
    layers = {name: layer for name, layer in manifest.layers.items() if layer.plan.bits} if manifest else {}
    if manifest is None or manifest.kind != "model" or not layers:
        return Sidecars(directory)
    tensors: dict[str, Array] = {}
    for path in _files(directory, manifest):
        tensors |= read_shard(path)
    for module, layer in layers.items():
        if f"{module}.q" not in tensors:
            raise InputError(f"{directory}: {module} has {layer.plan.bits} bits but no integers; copy it again")
    return Sidecars(directory, layers, tensors)


def _files(directory: Path, manifest: Manifest) -> list[Path]:
    """The sidecar files, each with the hash that the manifest states."""
    found = []
    for name, entry in sorted(manifest.files.items()):
        if not name.startswith(PREFIX):
            continue
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: listed in the manifest but missing; copy the directory again")
        if path.stat().st_size != entry.size_bytes or sha256_file(path) != entry.sha256:
            raise InputError(f"{path}: differs from the manifest, the integers were changed; compress the model again")
        found.append(path)
    return found


def _read(where: str, tensors: Mapping[str, Array], module: str, shape: tuple[int, int], bits: Bits) -> Integral:
    whole = container(bits) == "int8"
    columns = shape[1] if whole else (shape[1] + 1) // 2
    stored = _part(tensors, module, "q", where, np.int8 if whole else np.uint8, (shape[0], columns))
    scales = _part(tensors, module, "scales", where, np.float32, scales_shape(bits, shape))
    q = np.asarray(stored, np.int8) if whole else unpack_nibbles(np.asarray(stored, np.uint8), shape[1])
    largest = LARGEST[bits]
    if q.size and not -largest <= int(q.min()) <= int(q.max()) <= largest:
        raise InputError(f"{where}: integers reach {int(q.min())} to {int(q.max())}, {bits} bits hold +-{largest}")
    steps = np.asarray(scales, np.float32)
    if not (np.isfinite(steps).all() and (steps >= 0).all()):
        raise InputError(f"{where}: a scale is negative or not finite; compress the model again")
    return Integral(q, steps, bits)


def _part(
    tensors: Mapping[str, Array], module: str, part: str, where: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> Array:
    array = tensors.get(f"{module}.{part}")
    if array is None:
        raise InputError(f"{where}: {module}.{part} is missing from the integers; compress the model again")
    if array.dtype != dtype or array.shape != shape:
        raise InputError(
            f"{where}: {module}.{part} needs {np.dtype(dtype).name} {list(shape)}, "
            f"has {array.dtype} {list(array.shape)}; compress the model again"
        )
    return array
