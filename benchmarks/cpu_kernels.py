"""Sparse kernels against the machine's read bandwidth, alone and inside ONNX Runtime.

    python benchmarks/cpu_kernels.py run -o benchmarks/results/cpu_kernels.json
    python benchmarks/cpu_kernels.py table benchmarks/results/cpu_kernels.json

For every shape, data type and sparsity: a pool of random matrices far larger than the caches, multiplied in turn with one
row of activations (decode). Each round is read, products, read: the share of the bandwidth is the product's bytes a
second over the mean of the two reads around it, so that a machine whose bandwidth moves by the minute moves both. The
configurations of one shape take turns within each round. Raw seconds and read rates are kept; rounds whose two reads
differ by more than a fifth are left out of the medians (and counted).
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tailcut.bench.lock import machine_lock
from tailcut.bench.machine import describe_machine, l3_bytes, pinned
from tailcut.bench.report import markdown_row
from tailcut.files import write_file
from tailcut.kernels import library
from tailcut.kernels.library import CpuMatrix
from tailcut.kernels.timing import random_pool, stream_read, time_pool
from tailcut.quantised import Precision

SHAPES = ((4096, 4096), (11008, 4096), (5632, 2048))
SPARSITIES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
KINDS: dict[str, Precision] = {"i8": "int8", "f32": "float32", "i4": "int4", "bf16": "bfloat16", "f16": "float16"}
READ_BYTES = 256 << 20
STEADY = 0.2  # the two reads around a round may differ by this much


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    kind: str
    shape: tuple[int, int]
    sparsity: float
    threads: int

    @property
    def key(self) -> str:
        return f"{self.kind} {self.shape[0]}x{self.shape[1]} {self.sparsity:.2f} {self.threads}t"


def measure_shape(settings: Sequence[Setting], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All settings of one shape: packed once, then one thread count after the other."""
    found = {
        (s.kind, s.sparsity): random_pool(KINDS[s.kind], s.shape, s.sparsity, options.pool_bytes, options.isa)
        for s in settings
    }
    for threads in dict.fromkeys(options.threads):
        with pinned(threads):
            yield from take_turns({s: found[s.kind, s.sparsity] for s in settings if s.threads == threads}, options)


def take_turns(pools: dict[Setting, list[CpuMatrix]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The settings of one shape and thread count, each once a round."""
    buffer = np.ones(READ_BYTES, np.uint8)
    columns = next(iter(pools)).shape[1] if pools else 0
    x = np.random.default_rng(1).standard_normal((1, columns), np.float32)
    rows: dict[Setting, dict[str, Any]] = {}
    for setting, pool in pools.items():
        described = asdict(pool[0].describe())
        rows[setting] = asdict(setting) | {"key": setting.key, "isa": described["isa"], "format": described["format"]}
        rows[setting] |= {"bytes": described["bytes"], "pool": len(pool), "rounds": []}
        time_pool(pool, x, setting.threads, 2, 0)
    for turn in range(options.rounds):
        for setting, pool in pools.items():
            before = stream_read(buffer, setting.threads)
            seconds = time_pool(pool, x, setting.threads, options.calls, turn * options.calls)
            after = stream_read(buffer, setting.threads)
            rows[setting]["rounds"].append({"seconds": seconds.tolist(), "read": [before, after]})
    yield from rows.values()


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every shape; the file is rewritten after each, and what it holds is not repeated."""
    rows = read(options.output) if options.output.exists() else []
    known = {row["key"] for row in rows}
    for shape in options.shapes:
        wanted = [
            Setting(kind, shape, sparsity, threads)
            for threads in options.threads
            for kind in options.kinds
            for sparsity in options.sparsities
        ]
        settings = [setting for setting in wanted if setting.key not in known]
        if settings:
            with machine_lock():
                rows += measure_shape(settings, options)
            write(options.output, rows)
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    machine = json.loads(json.dumps(asdict(describe_machine())))
    content = {"machine": machine, "isas": library.isas(), "rows": rows}
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_bytes())["rows"]
    return rows


def steady(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Rounds whose bandwidth was the same before and after; all of them if none was."""
    found = [r for r in row["rounds"] if abs(r["read"][0] - r["read"][1]) <= STEADY * max(r["read"])]
    return found or row["rounds"]


def shares(row: dict[str, Any]) -> list[float]:
    """Share of the read bandwidth in each steady round."""
    return [row["bytes"] / float(np.median(r["seconds"])) / float(np.mean(r["read"])) for r in steady(row)]


def render(content: dict[str, Any]) -> str:
    """One line a shape, data type and thread count; share of the read bandwidth and time by sparsity."""
    rows = content["rows"]
    sparsities = sorted({row["sparsity"] for row in rows})
    head = ["weights", "matrix", "threads", *(f"{sparsity:.0%}" for sparsity in sparsities)]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for kind in KINDS:
        for shape, threads in dict.fromkeys((tuple(r["shape"]), r["threads"]) for r in rows if r["kind"] == kind):
            mine = {
                r["sparsity"]: r for r in rows if (r["kind"], tuple(r["shape"]), r["threads"]) == (kind, shape, threads)
            }
            cells = [_cell(mine.get(sparsity)) for sparsity in sparsities]
            lines.append(markdown_row([kind, f"{shape[0]} x {shape[1]}", str(threads), *cells]))
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    times = [float(np.median(r["seconds"])) for r in steady(row)]
    return f"{np.median(shares(row)):.0%}, {1e3 * np.median(times):.2f} ms ({row['format']})"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser = actions.add_parser("run", help="measure")
    run_parser.add_argument("--kinds", type=lambda text: text.split(","), default=["i8", "f32", "i4", "bf16"])
    run_parser.add_argument("--shapes", type=shapes_of, default=SHAPES, metavar="OUTxIN,…")
    run_parser.add_argument("--sparsities", type=lambda text: [float(p) for p in text.split(",")], default=SPARSITIES)
    run_parser.add_argument("--threads", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    run_parser.add_argument("--rounds", type=int, default=12)
    run_parser.add_argument("--calls", type=int, default=20)
    run_parser.add_argument("--pool-bytes", type=int, default=max(512 << 20, 2 * l3_bytes()))
    run_parser.add_argument("--isa", default="auto", choices=("auto", *library.ISAS))
    run_parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/cpu_kernels.json"))
    table = actions.add_parser("table", help="render the Markdown table of a result file")
    table.add_argument("file", type=Path)
    return parser.parse_args(arguments)


def shapes_of(text: str) -> list[tuple[int, int]]:
    pairs = (part.split("x") for part in text.split(","))
    return [(int(out), int(inputs)) for out, inputs in pairs]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "run":
        run(options)
    print(render(json.loads((options.file if options.action == "table" else options.output).read_bytes())))


if __name__ == "__main__":
    main()
