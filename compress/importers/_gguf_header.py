"""The header of a GGUF file, every length checked against the file before anything is read or allocated.

GGUF (version 2 and 3, little endian): magic, version, tensor count, metadata count; metadata as key, type, value; the tensor
table as name, sizes (fastest first), type, offset; then the data, aligned. The `gguf` package reads metadata arrays in a
loop that trusts their lengths, so a file is only handed to it when this walk has found it sound.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from tailcut.errors import InputError, MissingEnvironmentError

MAGIC: Final = b"GGUF"
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES: Final = 1 << 16  # metadata keys, tensors
_LONGEST_NAME: Final = 1 << 12
_ALIGNMENT: Final = 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the table: shape as [out, in], the name of its type, and its bytes."""

    shape: tuple[int, ...]
    kind: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Scalars and texts of the metadata (of an array only its length), and the tensors by name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def family(self) -> str:
        return str(self.fields.get("general.architecture", "unknown"))

    @property
    def kinds(self) -> dict[str, int]:
        """How many matrices have each type, most first."""
        return dict(Counter(t.kind for t in self.tensors.values() if len(t.shape) > 1).most_common())


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path) -> GgufHeader:
    """Walk the header; InputError names what does not fit the file."""
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return _Walk(path, mapped).header()


class _Walk:
    """A position in the file; every step checks that the bytes are there."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def header(self) -> GgufHeader:
        magic, version = self._bytes(4), self._number("I")
        if magic != MAGIC or version not in (2, 3):
            raise InputError(f"{self._path}: not a GGUF file of version 2 or 3, little endian")
        tensors, keys = self._count("tensors"), self._count("metadata keys")
        fields: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text(_LONGEST_NAME)
            if key in fields:
                raise InputError(f"{self._path}: the metadata key {key} appears twice")
            fields[key] = self._value(int(self._number("I")), key)
        table = [self._tensor() for _ in range(tensors)]
        return GgufHeader(fields, self._placed(table, fields))

    def _placed(
        self, table: list[tuple[str, tuple[int, ...], int, int]], fields: Mapping[str, Any]
    ) -> dict[str, GgufTensor]:
        alignment = fields.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise InputError(f"{self._path}: an alignment of {alignment} bytes is none")
        start = -(-self._at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, sizes, number, offset in table:
            kind, block, width = _type(number, self._path, name)
            count = prod(sizes)
            size = count // block * width
            if name in found or sizes[0] % block or start + offset + size > len(self._data):
                raise InputError(
                    f"{self._path}: tensor {name} of sizes {list(sizes)} ({kind}) at byte {start + offset} does not fit the "
                    f"file of {len(self._data)} bytes, or appears twice; copy the file again"
                )
            found[name] = GgufTensor(tuple(reversed(sizes)), kind, size)
        return found

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self._text(_LONGEST_NAME), int(self._number("I"))
        if not 1 <= rank <= 4:
            raise InputError(f"{self._path}: tensor {name} has {rank} sizes, 1 to 4 are known")
        sizes = tuple(int(self._number("Q")) for _ in range(rank))
        return name, sizes, int(self._number("I")), int(self._number("Q"))

    def _value(self, kind: int, key: str) -> Any:  # noqa: ANN401  a scalar, a text or the length of an array
        if kind == _STRING:
            return self._text(len(self._data))
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise InputError(f"{self._path}: metadata {key} has the unknown type {kind}")
        inner, length = int(self._number("I")), int(self._number("Q"))
        if inner == _STRING:
            if length > len(self._data) // 8:
                raise InputError(f"{self._path}: metadata {key} claims {length} texts, more than the file has room for")
            for _ in range(length):
                self._text(len(self._data))
        elif inner in _SCALARS:
            self._skip(length * struct.calcsize(_SCALARS[inner]), key)
        else:
            raise InputError(f"{self._path}: metadata {key} is an array of the unknown type {inner}")
        return f"{length} values"

    def _count(self, what: str) -> int:
        count = int(self._number("Q"))
        if count > _MOST_ENTRIES:
            raise InputError(f"{self._path}: {count} {what}, at most {_MOST_ENTRIES} are read")
        return count

    def _text(self, longest: int) -> str:
        length = int(self._number("Q"))
        if length > longest:
            raise InputError(f"{self._path}: a text of {length} bytes, longer than it can be; the file is damaged")
        return self._bytes(length).decode("utf-8", "replace")

    def _number(self, code: str) -> Any:  # noqa: ANN401  int, float or bool
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))[0]

    def _bytes(self, count: int) -> bytes:
        at = self._at
        self._skip(count, "the header")
        return bytes(self._data[at : self._at])

    def _skip(self, count: int, what: str) -> None:
        if count > len(self._data) - self._at:
            raise InputError(f"{self._path}: {what} goes beyond the end of the file; it is damaged, copy it again")
        self._at += count


def _type(number: int, path: Path, name: str) -> tuple[str, int, int]:
    """(name, weights a block, bytes a block) of a tensor type."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise MissingEnvironmentError("the gguf package is not installed; run: pip install gguf") from error
    try:
        kind = GGMLQuantizationType(number)
        block, width = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: tensor {name} has the unknown type {number}") from error
    return str(kind.name), int(block), int(width)
