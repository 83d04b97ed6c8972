"""Products of one to many rows of x inside ONNX Runtime: ours on cut matrices against its own on dense ones.

    python benchmarks/cpu_rows.py run --threads 2 -o benchmarks/results/cpu_rows.json
    python benchmarks/cpu_rows.py table benchmarks/results/cpu_rows.json

A model is a chain of matrices, out x in and in x out in turn, so that the number of rows stays; a time is that of the
whole chain divided by its length. Chains for few rows exceed the caches; those for many rows are short. All models of
one shape are visited in turn in each round. `standalone` is the same kernel without ONNX Runtime, for one row.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from bench_common import add_table, perform  # beside this script
from cpu_kernels import KINDS, shapes_of
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine, l3_bytes, pinned_cpus
from tailcut.bench.quantise import BLOCK, REDUCED, int8_columns, nbit_blocks
from tailcut.bench.report import markdown_row
from tailcut.files import write_file
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix
from tailcut.kernels.session import session_options
from tailcut.kernels.timing import random_parts, time_pool

SHAPES = ((4096, 4096), (11008, 4096), (5632, 2048))
ROWS = (1, 4, 16, 64, 128, 512)
FEW = 16  # up to this many rows memory may be the limit: chains beyond the caches
SHORT = 2  # matrices in a chain for more rows
ORT = "onnxruntime"
OPERATORS = {"f32": "SparseMatMul", "i8": "SparseMatMulInt8", "i4": "SparseMatMulInt4"}
BITS = {"f32": 32.0, "i8": 8.0, "i4": 4.25}
Array = npt.NDArray[Any]
Opened = tuple[onnxruntime.InferenceSession, int]  # and the number of its matrices


@dataclass(frozen=True)
class Setting:
    """One model: ours at a sparsity, or ONNX Runtime's dense product of that precision."""

    engine: str
    kind: str
    sparsity: float


def bytes_of(setting: Setting, shape: tuple[int, int]) -> float:
    kept = BITS[setting.kind] * (1 - setting.sparsity) + bool(setting.sparsity)
    return shape[0] * shape[1] * kept / 8


def make_node(setting: Setting, shape: tuple[int, int], number: int) -> tuple[NodeProto, list[TensorProto]]:
    """The node that multiplies with a random matrix [out, in] of that setting."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Array]
    settings: dict[str, int] = {}
    domain = "com.microsoft"
    if setting.engine == "tailcut":
        found = random_parts(KINDS[setting.kind], shape, setting.sparsity, rng)
        arrays = {key: found[key] for key in ("values", "mask", "scales") if found[key] is not None}
        arrays["values"], arrays["shape"] = _smaller(arrays["values"], shape[1]), np.array(shape, np.int64)
        if "scales" in arrays:
            arrays["scales"] = np.full_like(arrays["scales"], 0.1 / shape[1] ** 0.5)
        operator, domain = OPERATORS[setting.kind], "tailcut"
    else:
        weight = rng.standard_normal(shape[::-1], np.float32) / np.float32(shape[1] ** 0.5)
        operator, domain, arrays, settings = _theirs(setting.kind, weight)
    names = [f"w{number}.{key}" for key in arrays]
    node = helper.make_node(operator, [f"x{number}", *names], [f"x{number + 1}"], domain=domain, **settings)
    return node, [numpy_helper.from_array(array, name) for name, array in zip(names, arrays.values(), strict=True)]


def _smaller(values: Array, columns: int) -> Array:
    """Float weights that keep the size of what they multiply."""
    return values / values.dtype.type(columns**0.5) if values.dtype == np.float32 else values


def _theirs(kind: str, weight: Array) -> tuple[str, str, dict[str, Array], dict[str, int]]:
    if kind == "f32":
        return "MatMul", "", {"weight": weight}, {}
    if kind == "i8":
        codes, scales = int8_columns(weight, REDUCED)
        return "DynamicQuantizeMatMul", "com.microsoft", {"codes": codes, "scales": scales}, {}
    codes, scales = nbit_blocks(weight, 4)
    sizes = {"K": weight.shape[0], "N": weight.shape[1], "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
    return "MatMulNBits", "com.microsoft", {"codes": codes, "scales": scales}, sizes


def chain(setting: Setting, shape: tuple[int, int], length: int) -> ModelProto:
    """`length` matrices, every second one turned round. Matrices of one shape hold the same numbers in other memory."""
    shapes = [shape, shape[::-1]]
    first = [make_node(setting, side, number) for number, side in enumerate(shapes)]
    nodes, tensors = [], []
    for number in range(length):
        node, found = first[number % 2]
        made = NodeProto()
        made.CopyFrom(node)
        made.input[0], made.output[0] = f"x{number}", f"x{number + 1}"
        for position, tensor in enumerate(found):
            copied = TensorProto()
            copied.CopyFrom(tensor)
            copied.name = made.input[1 + position] = f"w{number}.{position}"
            tensors.append(copied)
        nodes.append(made)
    value = [helper.make_tensor_value_info(name, 1, ["m", shape[1]]) for name in ("x0", f"x{length}")]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("tailcut", 1), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def open_chain(setting: Setting, shape: tuple[int, int], rows: int, options: argparse.Namespace) -> Opened:
    """A chain of an even number of matrices."""
    wanted = options.pool_bytes / bytes_of(setting, shape) if rows <= FEW else SHORT
    length = max(2, int(wanted) // 2 * 2)
    own = session_options(threads=options.threads, cpus=pinned_cpus(options.threads))
    if setting.engine == "tailcut":
        own.register_custom_ops_library(str(library.require()))
    model = chain(setting, shape, length).SerializeToString()
    return onnxruntime.InferenceSession(model, own, providers=["CPUExecutionProvider"]), length


def measure(shape: tuple[int, int], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All settings of one shape, few rows and then many."""
    settings = [Setting("tailcut", kind, sparsity) for kind in options.kinds for sparsity in options.sparsities]
    settings += [Setting(ORT, kind, 0.0) for kind in options.kinds]
    for group in ([m for m in options.rows if m <= FEW], [m for m in options.rows if m > FEW]):
        opened = {setting: open_chain(setting, shape, group[0], options) for setting in settings if group}
        for rows in group:
            x = np.random.default_rng(1).standard_normal((rows, shape[1]), np.float32)
            times = {setting: timed(session, x, length, options) for setting, (session, length) in opened.items()}
            for number in range(options.rounds):
                order = [*settings[number % len(settings) :], *settings[: number % len(settings)]]
                for setting in order:
                    times[setting] += timed(*_turn(opened[setting], x), options)
            for setting in settings:
                yield {"shape": list(shape), "rows": rows, **asdict(setting), "ms": times[setting][1:]}
    if 1 in options.rows:
        yield from standalone(shape, [setting for setting in settings if setting.engine == "tailcut"], options)


def _turn(opened: Opened, x: Array) -> tuple[onnxruntime.InferenceSession, Array, int]:
    return opened[0], x, opened[1]


def timed(session: onnxruntime.InferenceSession, x: Array, length: int, options: argparse.Namespace) -> list[float]:
    """Milliseconds a matrix of one run, after a pause in which the threads of other sessions fall asleep."""
    time.sleep(options.pause)
    session.run(None, {"x0": x[:1]})
    begin = time.perf_counter()
    session.run(None, {"x0": x})
    return [(time.perf_counter() - begin) * 1e3 / length]


def standalone(
    shape: tuple[int, int], settings: Sequence[Setting], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The same kernels, called directly: one row."""
    for setting in settings:
        sides = [shape, shape[::-1]]
        found = [random_parts(KINDS[setting.kind], side, setting.sparsity, np.random.default_rng(0)) for side in sides]
        length = max(2, int(options.pool_bytes / bytes_of(setting, shape)) // 2)
        pools = [
            [CpuMatrix(shape=side, **part) for _ in range(length)] for side, part in zip(sides, found, strict=True)
        ]
        inputs = [np.ones((1, side[1]), np.float32) for side in sides]
        times = []
        for _ in range(options.rounds + 1):
            both = [time_pool(pool, x, options.threads, length, 0).sum() for pool, x in zip(pools, inputs, strict=True)]
            times.append(float(sum(both)) * 1e3 / (2 * length))
        row = asdict(setting) | {"engine": "standalone"}
        yield {"shape": list(shape), "rows": 1, **row, "ms": times[1:]}


def run(options: argparse.Namespace) -> None:
    os.sched_setaffinity(0, pinned_cpus(options.threads))
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        with machine_lock():
            rows += measure(shape, options)
        machine = json.loads(json.dumps(asdict(describe_machine())))
        content = {"machine": machine, "isa": library.best_isa(), "threads": options.threads, "rows": rows}
        write_file(options.output, (json.dumps(content, indent=1) + "\n").encode())


def render(content: dict[str, Any]) -> str:
    """Milliseconds of ours and, in brackets, ONNX Runtime's time of that precision over ours."""
    rows = content["rows"]
    counts = sorted({row["rows"] for row in rows})
    head = ["matrix", "weights", "sparsity", *(f"{m} rows" for m in counts), "1 row, inside ORT over alone"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    keys = dict.fromkeys((tuple(r["shape"]), r["kind"], r["sparsity"]) for r in rows if r["engine"] == "tailcut")
    for shape, kind, sparsity in keys:
        cells = [_cell(rows, shape, kind, sparsity, m) for m in counts]
        alone, inside = (_median(rows, shape, engine, kind, sparsity, 1) for engine in ("standalone", "tailcut"))
        ratio = f"{inside / alone:.2f}" if alone and inside else ""
        lines.append(markdown_row([f"{shape[0]} x {shape[1]}", kind, f"{sparsity:.0%}", *cells, ratio]))
    cpu = content["machine"]["cpu"]
    note = f"{cpu}, {content['isa']} kernels, {content['threads']} threads, commit {content['machine']['commit']}."
    return "\n".join([*lines, "", note])


def _cell(rows: Sequence[dict[str, Any]], shape: Sequence[int], kind: str, sparsity: float, m: int) -> str:
    ours, theirs = _median(rows, shape, "tailcut", kind, sparsity, m), _median(rows, shape, ORT, kind, 0.0, m)
    return f"{ours:.2f} ms ({theirs / ours:.2f}x)" if ours and theirs else ""


def _median(
    rows: Sequence[dict[str, Any]], shape: Sequence[int], engine: str, kind: str, sparsity: float, m: int
) -> float:
    wanted = (list(shape), engine, kind, sparsity, m)
    found = [r["ms"] for r in rows if (r["shape"], r["engine"], r["kind"], r["sparsity"], r["rows"]) == wanted]
    return float(np.median(found[-1])) if found else 0.0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    action.add_argument("--kinds", type=lambda text: text.split(","), default=["f32", "i8", "i4"])
    action.add_argument("--shapes", type=shapes_of, default=SHAPES, metavar="OUTxIN,…")
    action.add_argument("--sparsities", type=lambda text: [float(p) for p in text.split(",")], default=[0.5, 0.8])
    action.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=list(ROWS))
    action.add_argument("--threads", type=int, default=2)
    action.add_argument("--rounds", type=int, default=5)
    action.add_argument("--pause", type=float, default=0.02, help="seconds between two runs")
    action.add_argument("--pool-bytes", type=int, default=max(512 << 20, 2 * l3_bytes()))
    action.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/cpu_rows.json"))
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    perform(parse(arguments), run, render)


if __name__ == "__main__":
    main()
