"""ONNX files, ours and of others, read safely: the graph without its weights, and each tensor from where it says it lies.

Nothing is allocated or mapped before its size is known to fit. External data is a plain file name beside the graph, so
that no path leaves the directory; offset, length, shape and type must agree with the file that is really there.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from tailcut.bitmask import Array
from tailcut.coo import Coo, from_coo, to_coo
from tailcut.errors import InputError
from tailcut.files import flat_name

_MAX_MODEL_BYTES: Final = (1 << 31) - 1  # protobuf's own limit


@dataclass(frozen=True, slots=True)
class Place:
    """Where an external tensor lies: file name, byte offset, number of values and their type."""

    file: str
    offset: int
    count: int
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        return self.offset + self.count * self.dtype.itemsize


def read_model(path: Path) -> onnx.ModelProto:
    """The graph without its external data; InputError if it is not one."""
    try:
        if path.stat().st_size > _MAX_MODEL_BYTES:
            raise InputError(f"{path}: larger than 2 GiB, which no ONNX graph is; export the model again")
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InputError(f"{path}: cannot read the graph ({error.strerror}); export the model again") from error
    except DecodeError as error:
        raise InputError(f"{path}: not an ONNX file or damaged; export or copy it again") from error
    if not _is_text(model):
        raise InputError(f"{path}: a name in the graph is not text (UTF-8); it is damaged, export or copy it again")
    return model


def _is_text(message: Any) -> bool:  # noqa: ANN401 any protobuf message
    """Whether every name is text: protobuf hands over as bytes what is not, and no code expects that."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        entries = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
        if not all(isinstance(e, str) if field.type == field.TYPE_STRING else _is_text(e) for e in entries):
            return False
    return True


def locate(tensor: onnx.TensorProto, directory: Path) -> Place:
    """Where an external tensor says it lies; InputError if that is malformed or leaves the directory."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", "0")), int(entries["length"])
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, ValueError) as error:
        raise InputError(f"{directory}: tensor {tensor.name} has no valid external offset, length and type") from error
    count = int(np.prod([int(size) for size in tensor.dims], dtype=object))
    if offset < 0 or min(tensor.dims, default=0) < 0 or length != count * dtype.itemsize:
        raise InputError(
            f"{directory}: tensor {tensor.name} of shape {list(tensor.dims)} needs {count * dtype.itemsize} bytes, "
            f"its entry says {length} at offset {offset}"
        )
    return Place(flat_name(entries.get("location", "")), offset, count, dtype)


class TensorReader:
    """Values of the tensors of one ONNX file; external files are mapped, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps: dict[str, mmap.mmap] = {}

    def read(self, tensor: TensorProto) -> Array:
        """A tensor's values; InputError names it when its bytes are not what its shape and type need."""
        where = f"{self._directory}: tensor {tensor.name}"
        if tensor.data_location == TensorProto.EXTERNAL:
            return self._external(tensor)
        try:
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
            count = int(np.prod([int(size) for size in tensor.dims], dtype=object))
            if min(tensor.dims, default=0) < 0 or (tensor.raw_data and len(tensor.raw_data) != _bytes(tensor, count)):
                raise InputError(f"{where} of shape {list(tensor.dims)} and type {dtype} is not the bytes it holds")
            return np.asarray(numpy_helper.to_array(tensor))
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{where} cannot be read ({error})") from error

    def read_sparse(self, tensor: SparseTensorProto) -> Array:
        """The dense values of a sparse initializer, whose name is that of its values."""
        name = tensor.values.name
        coo = Coo(self.read(tensor.values), np.asarray(self.read(tensor.indices)), tuple(int(d) for d in tensor.dims))
        return from_coo(coo, f"{self._directory}: sparse initializer {name}")

    def _external(self, tensor: TensorProto) -> Array:
        place = locate(tensor, self._directory)
        path = self._directory / place.file
        if place.file not in self._maps and place.count:
            try:
                with path.open("rb") as stream:
                    self._maps[place.file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: the data of tensor {tensor.name} cannot be opened ({error})") from error
        size = len(self._maps[place.file]) if place.count else 0
        if place.stop > size and place.count:
            raise InputError(f"{path}: tensor {tensor.name} ends at byte {place.stop}, the file has {size}")
        if not place.count:
            return np.zeros(tuple(tensor.dims), place.dtype)
        return np.frombuffer(self._maps[place.file], place.dtype, place.count, place.offset).reshape(tuple(tensor.dims))


def sparse_tensor(name: str, dense: Array) -> SparseTensorProto:
    """A tensor as a standard sparse initializer called `name`, linear int64 indices."""
    coo = to_coo(dense)
    values = numpy_helper.from_array(np.ascontiguousarray(coo.values), name)
    indices = numpy_helper.from_array(coo.indices, f"{name}.indices")
    return helper.make_sparse_tensor(values, indices, list(coo.shape))


def _bytes(tensor: TensorProto, count: int) -> int:
    """Bytes of `count` raw values; types below a byte share one."""
    bits = _BITS_BELOW_A_BYTE.get(tensor.data_type)
    if bits is not None:
        return (count * bits + 7) // 8
    return count * int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)


_BITS_BELOW_A_BYTE: Final = {
    getattr(TensorProto, name): bits
    for name, bits in (("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2))
    if hasattr(TensorProto, name)
}
