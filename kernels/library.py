"""The compiled kernels (kernels/cpu): where the library is, and its plain interface for tests, benchmarks and proof.

ONNX Runtime loads the same library by itself (`load_session` registers it); `counters` then tells which kernels ran in
this process, whoever called them.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.kernels.build import LIBRARY, BuildError, build, find_compiler

Isa = Literal["auto", "portable", "avx2", "avx512", "amx"]
Format = Literal["auto", "dense", "bitmask", "index", "slots"]
ISAS: Final[tuple[Isa, ...]] = ("portable", "avx2", "avx512", "amx")
FORMATS: Final[tuple[Format, ...]] = ("dense", "bitmask", "index", "slots")
KINDS: Final[tuple[np.dtype[Any], ...]] = tuple(
    np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8)
)
FORMAT_VERSION: Final = 1
INSTALL: Final = "run `tailcut engines install tailcut`"
_CAPACITY: Final = 128
_ERROR_BYTES: Final = 512

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


class _Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("kind", "format", "isa", "reserved")] + [
        (name, ctypes.c_int64) for name in ("rows", "cols", "nonzeros", "bytes")
    ]


def find() -> Path | None:
    """The library beside this file if it is there and loads here."""
    return LIBRARY if problem() is None else None


def require() -> Path:
    """The library, or MissingEnvironmentError with what to do."""
    reason = problem()
    if reason is not None:
        raise MissingEnvironmentError(reason)
    return LIBRARY


def problem() -> str | None:
    """None if the kernels can run here, else why not and what to do."""
    if not LIBRARY.is_file():
        try:
            compiler = f"{find_compiler().command} is there now"
        except BuildError as error:
            compiler = str(error)
        return f"tailcut's kernels were not compiled when it was installed; {INSTALL} ({compiler})"
    try:
        version = int(_open(str(LIBRARY)).tailcut_format_version())
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} does not load here ({error}); {INSTALL} to compile it again"
    if version != FORMAT_VERSION:
        return f"{LIBRARY.name} is of format version {version}, this tailcut needs {FORMAT_VERSION}; {INSTALL}"
    return None


def compile_again() -> Path:
    """Compile the library beside this file, unless it is current; MissingEnvironmentError if that cannot be done."""
    try:
        return build(LIBRARY)
    except (BuildError, OSError) as error:
        raise MissingEnvironmentError(f"tailcut's kernels cannot be compiled: {error}") from error


def isas(path: Path | None = None) -> tuple[str, ...]:
    """Instruction sets that this processor runs and the library was compiled for, slowest first."""
    library = _loaded(path)
    return tuple(name for number, name in enumerate(ISAS) if library.tailcut_isa_available(number))


def best_isa(path: Path | None = None) -> str:
    """The instruction set that is chosen by itself."""
    return ISAS[int(_loaded(path).tailcut_best_isa())]


def force(isa: Isa = "auto", format: Format = "auto", path: Path | None = None) -> None:
    """What sessions made from now on pack for, in place of the automatic choice. For tests and benchmarks."""
    if not _loaded(path).tailcut_force(_number(isa, ISAS), _number(format, FORMATS)):
        raise MissingEnvironmentError(f"this processor does not run {isa} kernels, or they were not compiled")


def counters(path: Path | None = None) -> dict[str, int]:
    """Products since this process started by kind, format and instruction set, such as {"i8 bitmask avx2": 12}."""
    names, calls = (ctypes.c_char_p * _CAPACITY)(), (ctypes.c_uint64 * _CAPACITY)()
    count = int(_loaded(path).tailcut_counters(names, calls, _CAPACITY))
    return {(names[index] or b"").decode(): int(calls[index]) for index in range(count)}


def packed_bytes(path: Path | None = None) -> int:
    """Bytes of the matrices that the open sessions of this process hold packed: what one token reads of them."""
    return int(_loaded(path).tailcut_packed_bytes())


def packing_threads(threads: int = 0, path: Path | None = None) -> None:
    """Threads that pack matrices from now on; 0 is one for each processor this process may use. The bytes are the same."""
    _loaded(path).tailcut_ask_packing_threads(threads)


@dataclass(frozen=True, slots=True)
class Description:
    """What a matrix was packed into: data type, format, instruction set, weights left and bytes read per product."""

    kind: str
    format: str
    isa: str
    shape: tuple[int, int]
    nonzeros: int
    bytes: int


class CpuMatrix:
    """One packed matrix [out, in] outside of ONNX Runtime.

    values [nnz] float32, float16, bfloat16 or int8, or uint8 with two 4-bit values each (see tailcut.quantised); mask
    uint8 [out, ceil(in / 8)], or None for a dense matrix; scales float32 [out] for int8, [out, ceil(in / 128)] for 4 bits.
    """

    def __init__(
        self,
        values: Array,
        shape: tuple[int, int],
        *,
        mask: npt.NDArray[np.uint8] | None = None,
        scales: Floats | None = None,
        isa: Isa = "auto",
        format: Format = "auto",
        activation_bits: int = 8,
        path: Path | None = None,
    ) -> None:
        if values.dtype not in KINDS:
            raise InputError(f"values are {values.dtype}, not one of {', '.join(kind.name for kind in KINDS)}")
        self._library = _loaded(path)
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        parts = [
            np.ascontiguousarray(values),
            None if mask is None else np.ascontiguousarray(mask, np.uint8),
            None if scales is None else np.ascontiguousarray(scales, np.float32),
        ]
        self._handle: int | None = self._library.tailcut_pack(
            KINDS.index(values.dtype),
            *(ctypes.c_int64(side) for side in shape),
            *_pointer(parts[1], 1),
            *_pointer(parts[0], 1),
            *_pointer(parts[2], 4),
            _number(isa, ISAS),
            _number(format, FORMATS),
            error,
            _ERROR_BYTES,
        )
        if self._handle is None:
            raise InputError(f"matrix {shape[0]} x {shape[1]}: {error.value.decode()}")
        self._library.tailcut_set_fine(self._handle, int(activation_bits > 8))

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.tailcut_free(self._handle)

    def describe(self) -> Description:
        info = _Info()
        self._library.tailcut_describe(self._handle, ctypes.byref(info))
        kind = ("f32", "f16", "bf16", "i8", "i4")[info.kind]
        shape = (int(info.rows), int(info.cols))
        return Description(kind, FORMATS[info.format], ISAS[info.isa], shape, int(info.nonzeros), int(info.bytes))

    def packed(self) -> npt.NDArray[np.uint8]:
        """A copy of the packed bytes, uint8 [describe().bytes]."""
        data = self._library.tailcut_data(self._handle)
        return np.frombuffer(ctypes.string_at(data, self.describe().bytes), np.uint8)

    def matmul(self, x: Floats, threads: int = 1, out: Floats | None = None) -> Floats:
        """x [..., in] -> x W^T [..., out], written to `out` (contiguous) if it is given."""
        rows, columns = self.describe().shape
        given = np.ascontiguousarray(x, np.float32)
        if given.ndim == 0 or given.shape[-1] != columns:
            raise InputError(f"x of shape {list(given.shape)} does not end in the matrix's {columns} columns")
        wanted = (*given.shape[:-1], rows)
        y = np.empty(wanted, np.float32) if out is None else out
        if y.shape != wanted or y.dtype != np.float32 or not y.flags.c_contiguous:
            raise InputError(f"out must be contiguous float32 {list(wanted)}, is {y.dtype} {list(y.shape)}")
        count = ctypes.c_int64(int(np.prod(wanted[:-1], dtype=np.int64)))
        if not self._library.tailcut_matmul(self._handle, _pointer(given, 4)[0], count, _pointer(y, 4)[0], threads):
            raise MissingEnvironmentError(f"not enough memory to multiply {count.value} rows")
        return y


def _number(name: str, names: tuple[str, ...]) -> int:
    if name != "auto" and name not in names:
        raise InputError(f"{name} is not one of auto, {', '.join(names)}")
    return -1 if name == "auto" else names.index(name)


def _pointer(array: Array | None, unit: int) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """Address and length of an array in units of `unit` bytes."""
    if array is None:
        return ctypes.c_void_p(), ctypes.c_size_t(0)
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes // unit)


def _loaded(path: Path | None) -> ctypes.CDLL:
    return _open(str(require() if path is None else path))


@cache
def _open(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    library.tailcut_pack.restype = pointer
    library.tailcut_pack.argtypes = [
        *(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64),
        *(pointer, size, pointer, size, pointer, size),
        *(ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, size),
    ]
    library.tailcut_packed_bytes.restype = ctypes.c_int64
    library.tailcut_set_fine.argtypes = [pointer, ctypes.c_int32]
    library.tailcut_set_fine.restype = None
    library.tailcut_free.argtypes = [pointer]
    library.tailcut_free.restype = None
    library.tailcut_describe.argtypes = [pointer, pointer]
    library.tailcut_describe.restype = None
    library.tailcut_data.argtypes = [pointer]
    library.tailcut_data.restype = pointer
    library.tailcut_ask_packing_threads.argtypes = [ctypes.c_int32]
    library.tailcut_ask_packing_threads.restype = None
    library.tailcut_matmul.argtypes = [pointer, pointer, ctypes.c_int64, pointer, ctypes.c_int32]
    library.tailcut_counters.argtypes = [pointer, pointer, ctypes.c_int32]
    return library
