"""Frames between the bench and a worker, over the worker's standard input and output.

    b"tcw1" | uint32 length of the header | header: JSON | array bytes, back to back, C order, little endian

The header is {"body": {...}, "arrays": [{"name", "dtype", "shape"}, ...]}. Sizes are bounded and dtypes come
from a short list, so a corrupt frame is refused before memory is taken. Standard library and numpy only, and
Python 3.8: this file also runs inside engine environments.

A worker answers each frame with one frame. Engines print: `serve` moves the frames to private file
descriptors and points fd 1 at stderr, so that a library's banner cannot land inside a frame.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from typing import Any, Callable, Dict, List, Tuple

import numpy as np

MAGIC = b"tcw1"
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 31
DTYPES = ("float32", "float64", "int64")
MAX_ARRAYS = 64
_PR_SET_PDEATHSIG = 1

Body = Dict[str, Any]
Arrays = Dict[str, Any]
Frame = Tuple[Body, Arrays]
Handler = Callable[[Body, Arrays], Frame]


class WireError(Exception):
    """The bytes are not a frame, or the frame is larger than allowed."""


def pack(body: Body, arrays: Arrays | None = None) -> List[bytes]:
    """One frame as the pieces to write in order."""
    listed = [(name, np.ascontiguousarray(array)) for name, array in (arrays or {}).items()]
    for name, array in listed:
        if array.dtype.name not in DTYPES:
            raise WireError(f"array {name}: dtype {array.dtype} is not one of {', '.join(DTYPES)}")
    described = [{"name": n, "dtype": a.dtype.name, "shape": list(a.shape)} for n, a in listed]
    header = json.dumps({"body": body, "arrays": described}).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise WireError(f"header of {len(header)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    return [MAGIC + struct.pack("<I", len(header)) + header] + [array.tobytes() for _, array in listed]


def unpack(read: Callable[[int], bytes]) -> Frame:
    """Read one frame. `read(n)` gives exactly n bytes, or b"" at the end of the stream (then EOFError)."""
    start = read(8)
    if not start:
        raise EOFError
    if len(start) != 8 or start[:4] != MAGIC:
        raise WireError(f"not a frame: it begins with {start!r}")
    (length,) = struct.unpack("<I", start[4:])
    if length > MAX_HEADER_BYTES:
        raise WireError(f"header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    body, described = _header(_exactly(read, length))
    sizes = [_array_bytes(item) for item in described]
    if sum(sizes) > MAX_PAYLOAD_BYTES:
        raise WireError(f"payload of {sum(sizes)} bytes, at most {MAX_PAYLOAD_BYTES} are allowed")
    arrays = {}
    for item, size in zip(described, sizes):
        data = np.frombuffer(_exactly(read, size), item["dtype"])
        arrays[item["name"]] = data.reshape(item["shape"])
    return body, arrays


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = read(size) if size else b""
    if len(data) != size:
        raise WireError(f"frame cut short: {len(data)} bytes of {size}")
    return data


def _header(raw: bytes) -> Tuple[Body, List[Dict[str, Any]]]:
    try:
        header = json.loads(raw.decode())
        body, arrays = header["body"], header["arrays"]
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"header is not a frame header ({error})") from error
    if not isinstance(body, dict) or not isinstance(arrays, list) or len(arrays) > MAX_ARRAYS:
        raise WireError("header is not a frame header")
    return body, arrays


def _array_bytes(item: object) -> int:
    """Size of one described array; WireError unless name, dtype and shape are what `pack` writes."""
    if not isinstance(item, dict) or not isinstance(item.get("name"), str) or item.get("dtype") not in DTYPES:
        raise WireError(f"header describes no array: {repr(item)[:80]}")
    shape = item.get("shape")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"header describes no array: {repr(item)[:80]}")
    size = int(np.dtype(item["dtype"]).itemsize)
    for extent in shape:  # Python integers: no overflow, whatever the header claims
        size *= extent
    return size


def serve(handlers: Dict[str, Handler]) -> int:
    """Answer frames until the bench closes the stream; an exception becomes an answer {"error": ...}."""
    _die_with_parent()
    source, sink = _claim_stdio()
    while True:
        try:
            body, arrays = unpack(source.read)
        except EOFError:
            return 0
        reply, extra = _answer(handlers, body, arrays)
        for piece in pack(reply, extra):
            sink.write(piece)
        sink.flush()
        if body.get("command") == "close":
            return 0


def _answer(handlers: Dict[str, Handler], body: Body, arrays: Arrays) -> Frame:
    command = str(body.get("command"))
    if command == "close":
        return {"peak_rss_bytes": peak_rss_bytes()}, {}
    if command not in handlers:
        return {"error": f"unknown command {command[:60]!r}"}, {}
    try:
        return handlers[command](body, arrays)
    # The process border: whatever an engine raises has to reach the bench as a sentence.
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"}, {}


def _claim_stdio() -> Tuple[Any, Any]:
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(source, "rb"), os.fdopen(sink, "wb")


def _die_with_parent() -> None:
    """Linux: SIGKILL when the bench dies, even in the middle of a long compile; elsewhere end of input does it."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.environ.get("TAILCUT_WORKER_PARENT")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != int(parent):  # it died before the line above
        sys.exit(0)


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far (VmHWM)."""
    with open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def pin(cpus: List[int]) -> None:
    """Keep this process, and every thread an engine starts later, on these CPUs."""
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def thread_cpus() -> List[str]:
    """The distinct CPU lists that this process's threads may run on, as the kernel writes them."""
    found: set[str] = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/status") as stream:
            found.update(line.split()[1] for line in stream if line.startswith("Cpus_allowed_list:"))
    return sorted(found)
