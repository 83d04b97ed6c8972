"""Opening a package safely: what the manifest lists, and where each tensor of the graph lies.

Nothing is allocated or mapped before its size is known to fit: the manifest's sizes are checked, external data must
be a plain file name of the package that the manifest lists, and offset, length, shape and type must agree.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from tailcut.errors import InputError
from tailcut.manifest import Manifest, verify
from tailcut.onnx_files import Place, locate, read_model

__all__ = [
    "DATA_NAME",
    "FUSED_NAME",
    "MODEL_NAME",
    "Package",
    "Place",
    "append_tensor",
    "locate",
    "open_package",
    "read_model",
]
MODEL_NAME: Final = "model.onnx"
FUSED_NAME: Final = "fused.onnx"  # the graph with a cache in place, where the model's family has one
DATA_NAME: Final = "model.onnx.data"
_ALIGNMENT: Final = 4096  # a runtime maps whole pages
_INLINE_BYTES: Final = 1024  # readers of external data want small tensors (shapes above all) inline


@dataclass(frozen=True, slots=True)
class Package:
    """A verified package: its manifest, its graph (weights left on disk) and the maps of its data files."""

    directory: Path
    manifest: Manifest
    model: onnx.ModelProto
    maps: Mapping[str, mmap.mmap]

    def array(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        """A tensor's values: a read-only view of the data file, or the graph's own bytes."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return onnx.numpy_helper.to_array(tensor)
        place = locate(tensor, self.directory)
        flat = np.frombuffer(self.maps[place.file], place.dtype, place.count, place.offset)
        return flat.reshape(tuple(tensor.dims))


def open_package(directory: Path, *, hashes: bool = False, graph: str = MODEL_NAME) -> Package:
    """Verify and open one graph of a package; `hashes` reads every byte and compares sha256 as well."""
    manifest = verify(directory, hashes=hashes)
    if manifest.kind != "package":
        raise InputError(f"{directory}: holds a {manifest.kind}, not an ONNX package; run `tailcut export` on it first")
    model = read_model(directory / graph)
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()}
    files = {_checked(tensor, directory, sizes) for tensor in model.graph.initializer if _is_external(tensor)}
    return Package(directory, manifest, model, {name: _map(directory / name) for name in files})


def append_tensor(stream: BinaryIO, location: str, name: str, array: npt.NDArray[Any]) -> onnx.TensorProto:
    """Append an array to the data file `location`, open as `stream`, and describe it; small ones stay in the graph."""
    data = np.ascontiguousarray(array)
    kind = int(helper.np_dtype_to_tensor_dtype(data.dtype))
    if data.nbytes < _INLINE_BYTES:
        return helper.make_tensor(name, kind, array.shape, data.tobytes(), raw=True)
    end = stream.tell()
    place = -(-end // _ALIGNMENT) * _ALIGNMENT
    stream.write(b"\0" * (place - end))
    stream.write(data.reshape(-1).view(np.uint8).data)
    tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=kind, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", place), ("length", data.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _checked(tensor: onnx.TensorProto, directory: Path, sizes: Mapping[str, int]) -> str:
    place = locate(tensor, directory)
    if place.file not in sizes:
        raise InputError(f"{directory}: tensor {tensor.name} lies in {place.file}, which the manifest does not list")
    if place.stop > sizes[place.file]:
        raise InputError(
            f"{directory / place.file}: tensor {tensor.name} ends at byte {place.stop}, the file has {sizes[place.file]}"
        )
    return place.file


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
