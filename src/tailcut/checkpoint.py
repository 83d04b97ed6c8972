"""Safetensors in and out, one tensor at a time, without torch.

A checkpoint is a Hugging Face directory: `config.json` and `model.safetensors`, or shards with an index.
Tensors are memory-mapped, so reading one costs its own size and a whole model is never resident. Matrices
stored bitmask-packed (`<name>.compressed`, `.bitmask`, `.row_offsets`, `.shape`) are read back exactly under
their own name. Only safetensors is read; pickles run code when opened and are refused.
"""

import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tailcut.bitmask import Array, Packed, pack, unpack
from tailcut.errors import InputError
from tailcut.files import NO_SPACE, disk_full, flat_name, full_disk_is_clear

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
PACKED_INDEX_NAME: Final = "packed.safetensors.index.json"  # a name that transformers does not look for
_PACKED_PARTS: Final = ("compressed", "bitmask", "row_offsets", "shape")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one stored tensor lies: dtype as safetensors names it, shape, file, and byte range in the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int


class Checkpoint:
    """A readable HF directory. Open with `Checkpoint(directory)`; `read(name)` gives one tensor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: Mapping[str, Any] = read_config(directory)
        self._stored = _stored_tensors(directory)
        self._packed = _packed_names(self._stored)
        self._maps: dict[Path, mmap.mmap] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's logical name (packed matrices under their own name), sorted."""
        hidden = {f"{name}.{part}" for name in self._packed for part in _PACKED_PARTS}
        return tuple(sorted((self._stored.keys() - hidden) | self._packed))

    @property
    def packed(self) -> frozenset[str]:
        """Names of the matrices stored bitmask-packed."""
        return self._packed

    @property
    def stored(self) -> Mapping[str, TensorInfo]:
        """Every tensor as the files name it, parts of packed matrices too."""
        return self._stored

    def read_stored(self, name: str) -> Array:
        """One tensor under the name that the files give it: a read-only view."""
        return self._view(name)

    def __contains__(self, name: str) -> bool:
        return name in self._packed or name in self._stored

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, sorted."""
        return tuple(sorted({info.file for info in self._stored.values()}))

    def names_in(self, file: Path) -> tuple[str, ...]:
        """The logical names whose values lie in one of `files`, sorted."""
        return tuple(name for name in self.names if self._file_of(name) == file)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it (a packed matrix stores it as a tiny tensor)."""
        return self._packed_shape(name) if name in self._packed else self._info(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Stored dtype of one tensor."""
        return DTYPES[self._info(f"{name}.compressed" if name in self._packed else name).dtype]

    def read(self, name: str) -> Array:
        """One tensor as a read-only array: a view of the file, or the unpacked matrix."""
        if name not in self._packed:
            return self._view(name)
        shape = self._packed_shape(name)
        return unpack(Packed(self._view(f"{name}.compressed"), self._view(f"{name}.bitmask").view(np.uint8), shape))

    def packed_bytes(self, name: str) -> int | None:
        """Bytes of a bitmask-packed matrix as it is stored, None for any other tensor."""
        if name not in self._packed:
            return None
        return sum(info.stop - info.start for info in (self._stored[f"{name}.{part}"] for part in _PACKED_PARTS))

    def read_finite(self, name: str) -> Array:
        """Like `read`, refusing NaN and infinity, which would poison every later stage silently."""
        array = self.read(name)
        if array.dtype.kind in "fV" and not is_finite(array):
            raise InputError(f"{name}: holds NaN or infinite weights; repair or re-download {self._file_of(name)}")
        return array

    def release(self) -> None:
        """Let go of mapped pages that were read: they count as resident. Arrays stay valid and are read again."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def fingerprint(self) -> str:
        """sha256 over config and weight files: what this model is."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for path in self.files:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def total_parameters(self) -> int:
        """Stored parameters (a tied head stored once counts once)."""
        return sum(int(np.prod(self.shape(name), dtype=np.int64)) for name in self.names)

    def _info(self, name: str) -> TensorInfo:
        info = self._stored.get(name)
        if info is None:
            raise InputError(f"{self.directory}: no tensor named {name}; the checkpoint does not fit its config")
        return info

    def _packed_shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) of a packed matrix, refused unless the mask that is really there has that size."""
        stated, mask = self._info(f"{name}.shape"), self._info(f"{name}.bitmask")
        if (stated.dtype, stated.shape) != ("I64", (2,)) or mask.dtype != "U8":
            raise InputError(
                f"{stated.file}: packed tensor {name} needs an int64 shape of two numbers and a uint8 mask"
            )
        rows, columns = (int(size) for size in self._view(f"{name}.shape"))
        if rows < 0 or columns < 0 or mask.shape != (rows, (columns + 7) // 8):
            raise InputError(
                f"{stated.file}: packed tensor {name} claims {rows} x {columns}, its mask of {mask.shape} says otherwise"
            )
        return rows, columns

    def _file_of(self, name: str) -> Path:
        return self._info(f"{name}.compressed" if name in self._packed else name).file

    def _view(self, name: str) -> Array:
        info = self._info(name)
        if info.stop == info.start:
            return np.zeros(info.shape, DTYPES[info.dtype])
        if info.file not in self._maps:
            with info.file.open("rb") as stream:
                self._maps[info.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        dtype = DTYPES[info.dtype]
        count = (info.stop - info.start) // dtype.itemsize
        return np.frombuffer(self._maps[info.file], dtype, count, info.start).reshape(info.shape)


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of an HF directory as a dict."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give a Hugging Face model directory")
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot read the model's config ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object")
    return config


def write_shard(path: Path, tensors: Mapping[str, Array]) -> None:
    """One safetensors file, flushed to disk. Dtypes are kept; arrays may be views."""
    # save_file stores a non-contiguous view's memory, not its values
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    try:
        with full_disk_is_clear(path):
            save_file(contiguous, path, {"format": "pt"})
            path.chmod(0o644)  # the library makes it readable by its owner only, which breaks a served package
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    except SafetensorError as error:
        # the library wraps the system's error in its own; only its text says which one it was
        number = re.search(r"os error (\d+)", str(error))
        if number is not None and int(number[1]) in NO_SPACE:
            raise disk_full(path) from error
        raise InputError(f"{path}: cannot write the shard ({error})") from error


def read_shard(path: Path) -> dict[str, Array]:
    """Every tensor of one safetensors file under its stored name, as read-only views of the mapped file."""
    header = _read_header(path)
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    tensors: dict[str, Array] = {}
    for name, info in header.items():
        dtype = DTYPES[info.dtype]
        count = (info.stop - info.start) // dtype.itemsize
        flat = np.frombuffer(mapped, dtype, count, info.start) if count else np.zeros(0, dtype)
        tensors[name] = flat.reshape(info.shape)
    return tensors


def packed_tensors(name: str, dense: Array) -> dict[str, Array]:
    """A matrix under compressed-tensors' four names; `Checkpoint.read(name)` gives it back exactly."""
    packed = pack(dense)
    return {
        f"{name}.compressed": packed.values,
        f"{name}.bitmask": packed.mask,
        f"{name}.row_offsets": packed.row_offsets,
        f"{name}.shape": np.asarray(packed.shape, np.int64),
    }


def write_index(directory: Path, shards: Iterable[Path], name: str = INDEX_NAME) -> None:
    """`model.safetensors.index.json` (or another name) for finished shards of `directory`."""
    weight_map: dict[str, str] = {}
    total = 0
    for shard in shards:
        for tensor, info in _read_header(shard).items():
            weight_map[tensor] = shard.name
            total += info.stop - info.start
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / name).write_text(json.dumps(index, indent=1) + "\n")


def _stored_tensors(directory: Path) -> dict[str, TensorInfo]:
    single, index = directory / SINGLE_NAME, directory / INDEX_NAME
    packed = directory / PACKED_INDEX_NAME
    if index.is_file() or packed.is_file():
        files = [directory / name for name in _index_files(index if index.is_file() else packed)]
    elif single.is_file():
        files = [single]
    else:
        raise InputError(f"{directory}: {_why_no_weights(directory)}")
    found: dict[str, TensorInfo] = {}
    for path in files:
        for name, info in _read_header(path).items():
            if name in found:
                raise InputError(f"{path}: tensor {name} is also in {found[name].file.name}")
            found[name] = info
    return found


def _index_files(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return sorted({flat_name(str(name)) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: not a safetensors index ({error})") from error


def _why_no_weights(directory: Path) -> str:
    pickles = sorted(p.name for p in directory.glob("*.bin")) + sorted(p.name for p in directory.glob("*.pt*"))
    if pickles:
        return (
            f"only pickled weights ({pickles[0]}), which can run code when opened; "
            "convert them to safetensors with save_pretrained(safe_serialization=True) on a trusted machine"
        )
    return "no model.safetensors and no index; this directory holds no weights"


def _read_header(path: Path) -> dict[str, TensorInfo]:
    """Validated header of one file; the library checks sizes, overlaps and truncation."""
    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged or truncated safetensors file ({error}); copy it again") from error
    header.pop("__metadata__", None)
    return {name: _tensor_info(name, entry, path, 8 + length) for name, entry in header.items()}


def _tensor_info(name: str, entry: Mapping[str, Any], path: Path, base: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise InputError(f"{path}: tensor {name} has dtype {entry['dtype']}, which tailcut does not read")
    start, stop = (int(offset) + base for offset in entry["data_offsets"])
    return TensorInfo(entry["dtype"], tuple(int(size) for size in entry["shape"]), path, start, stop)


def _packed_names(stored: Mapping[str, TensorInfo]) -> frozenset[str]:
    candidates = (name.removesuffix(".compressed") for name in stored if name.endswith(".compressed"))
    return frozenset(name for name in candidates if all(f"{name}.{part}" in stored for part in _PACKED_PARTS))


def float32(array: Array) -> npt.NDArray[np.float32]:
    """Any stored dtype -> contiguous float32."""
    return np.ascontiguousarray(array, dtype=np.float32)


def is_finite(array: Array) -> bool:
    """No NaN and no infinity, as float32 sees it; 16-bit floats by their exponent's bits, which need no widening."""
    exponent = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}.get(array.dtype.name)
    if exponent is None:
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())
    return not bool((array.view(np.uint16) & exponent == exponent).any())
