"""Damaged packages, one after another, opened and run with tailcut's kernels. A program of its own: it may crash.

    python package_cases.py PACKAGE SCRATCH FIRST COUNT

Prints each case's number before it starts, and at the end how many ran and how many were refused. Only InputError and
ONNX Runtime's own errors are refusals; anything else ends the program.
"""

import contextlib
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from tailcut.errors import InputError
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.session import ORT_ERRORS, load_session
from tailcut.kernels.stored import is_stored
from tailcut.manifest import file_entries, read_manifest, write_manifest

WILD = (0, 1, -1, 2, 7, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63))
TYPES = tuple(getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "INT8", "UINT8", "INT64", "DOUBLE"))
Change = Callable[[random.Random, onnx.ModelProto], None]


def parts(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The initializers that tailcut's operators take."""
    used = {name for node in model.graph.node if is_stored(node) for name in node.input[1:]}
    return [tensor for tensor in model.graph.initializer if tensor.name in used]


def dimension(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = rng.choice(parts(model))
    place = rng.randrange(len(tensor.dims))
    tensor.dims[place] = rng.choice([*WILD, tensor.dims[place] + 1, tensor.dims[place] - 1, tensor.dims[place] * 2])


def data_type(rng: random.Random, model: onnx.ModelProto) -> None:
    rng.choice(parts(model)).data_type = rng.choice(TYPES)


def stored_bytes(rng: random.Random, model: onnx.ModelProto) -> None:
    inside = [tensor for tensor in parts(model) if tensor.raw_data]
    if inside:
        tensor = rng.choice(inside)
        tensor.raw_data = garbled(rng, tensor.raw_data)


def shape_value(rng: random.Random, model: onnx.ModelProto) -> None:
    shapes = [tensor for tensor in parts(model) if tensor.data_type == onnx.TensorProto.INT64 and tensor.raw_data]
    if shapes:
        tensor = rng.choice(shapes)
        values = np.frombuffer(tensor.raw_data, np.int64).copy()
        values[rng.randrange(values.size)] = rng.choice([*WILD, int(values[0]) + 1, int(values[-1]) - 8])
        tensor.raw_data = values.tobytes()


def place(rng: random.Random, model: onnx.ModelProto) -> None:
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    if outside:
        entry = rng.choice(rng.choice(outside).external_data)
        entry.value = rng.choice([str(rng.choice(WILD)), "", "../x", entry.value + "0", entry.value[:-1], "model.onnx"])


def inputs(rng: random.Random, model: onnx.ModelProto) -> None:
    node = rng.choice([node for node in model.graph.node if is_stored(node)])
    other = rng.choice([node for node in model.graph.node if is_stored(node)])
    here, there = rng.randrange(len(node.input)), rng.randrange(len(other.input))
    change = rng.randrange(3)
    if change == 0:
        node.input[here] = other.input[there]
    elif change == 1:
        del node.input[here]
    else:
        node.op_type = rng.choice(["SparseMatMul", "SparseMatMulInt8", "SparseMatMulInt4", "MatMulInt8", "MatMulInt4"])


CHANGES: tuple[Change, ...] = (dimension, data_type, stored_bytes, shape_value, place, inputs)


def garbled(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, or the end cut off or repeated."""
    how = rng.randrange(4)
    if how == 0:
        return data[: rng.randrange(len(data) + 1)]
    if how == 1:
        return data + data[: rng.randrange(64)]
    changed = bytearray(data)
    for _ in range(1 if how == 2 else 16):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def damage(rng: random.Random, package: Path) -> None:
    what = rng.randrange(10)
    if what == 0:
        file = package / rng.choice(["model.onnx", "model.onnx.data", "manifest.json"])
        file.write_bytes(garbled(rng, file.read_bytes()))
    else:
        model = onnx.load(package / "model.onnx", load_external_data=False)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            rng.choice(CHANGES)(rng, model)
        (package / "model.onnx").write_bytes(model.SerializeToString())
    if what != 0 or rng.randrange(2):  # the manifest agrees, so that later checks are reached
        accept(package)


def accept(package: Path) -> None:
    with contextlib.suppress(InputError):  # the manifest itself may be what was damaged
        write_manifest(replace(read_manifest(package), files=file_entries(package)), package)


def attempt(package: Path) -> bool:
    """Whether the package opened and ran."""
    try:
        session = load_session(package, threads=1, kernels="require")
        Decoder(None, session=session).prefill(np.asarray([[1, 2, 3]], np.int64))
    except (InputError, *ORT_ERRORS):
        return False
    return True


def main() -> None:
    package, scratch, first, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    ran = 0
    for number in range(first, first + count):
        sys.stdout.write(f"case {number}\n")
        sys.stdout.flush()
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(package, scratch)
        damage(random.Random(number), scratch)  # noqa: S311 a case is its number
        ran += attempt(scratch)
    sys.stdout.write(f"{ran} ran, {count - ran} refused\n")


if __name__ == "__main__":
    main()
