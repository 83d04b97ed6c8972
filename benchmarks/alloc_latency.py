"""Does a plan made for a decode speed reach it? Cost table, plans by speed, packages, and a paired bench of each.

    python benchmarks/alloc_latency.py prepare MODEL SCORES.json --work DIR          # the dense package
    python benchmarks/alloc_latency.py run MODEL SCORES.json --work DIR -o result.json --speedups 1.5,2

`run` measures a cost table on the dense package, allocates for each speedup (latency allocator, every matrix by itself),
cuts by magnitude (the speed does not depend on which weights go), exports and benches dense beside sparse. The result
holds the table with its samples, each plan's prediction and the measured speedup with its interval.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tailcut import codec
from tailcut.allocation import Budget, LayerScores
from tailcut.bench.cost import Effort, measure_costs
from tailcut.bench.run import bench
from tailcut.compress.allocators import Settings, allocate
from tailcut.compress.calibration import Calibration
from tailcut.compress.run import compress
from tailcut.cost import CostTable
from tailcut.errors import InputError
from tailcut.export.run import export
from tailcut.files import write_file
from tailcut.progress import console
from tailcut.results import Workload


def prepare(options: argparse.Namespace) -> Path:
    """The dense package of the model, made once."""
    package = Path(options.work) / "dense"
    if not package.is_dir():
        export(options.model, package, weights=options.weights, check=False)
    return package


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The table and a row for each speedup; what is out of reach says so."""
    dense, scores = prepare(options), codec.load(LayerScores, options.scores)
    with console() as report:
        effort = Effort(rounds=options.rounds, steps=options.steps)
        table = measure_costs(dense, threads=options.threads, effort=effort, report=report)
    rows = [one(speedup, dense, scores, table, options) for speedup in options.speedups]
    return {
        "what": "decode speed that a plan predicts from a cost table, and what a paired bench measures",
        "model": options.model.name,
        "table": json.loads(codec.to_json(table)),
        "rows": rows,
    }


def one(
    speedup: float, dense: Path, scores: LayerScores, table: CostTable, options: argparse.Namespace
) -> dict[str, Any]:
    """Plan, package and bench of one speedup."""
    try:
        settings = Settings(cost=table, granularity="matrix")
        plan = allocate("latency", scores, Budget(0.0, speedup=speedup), settings)
    except InputError as error:
        return {"asked": speedup, "reason": str(error)}
    cut, package = Path(options.work) / "cut", Path(options.work) / f"package-{speedup:g}"
    for old in (cut, package):
        shutil.rmtree(old, ignore_errors=True)
    with console() as report:
        made = compress(options.model, plan, cut, pruner="magnitude", calibration=Calibration(), report=report)
        export(cut, package, weights=options.weights, check=False, report=report)
        workload = Workload(
            prompt_tokens=8,
            context=4 * options.steps,
            new_tokens=options.steps,
            threads=options.threads,
            blocks=options.blocks,
            prefill_blocks=0,
        )
        result = bench(dense, package, engines=("tailcut",), workload=workload, report=report)
    (engine,) = result.engines
    return {
        "asked": speedup,
        "plan": dict(plan.provenance),
        "sparsity": made.sparsity,
        "reason": engine.reason,
        "measured": engine.decode_speedup and asdict(engine.decode_speedup),
        "dense_ms": engine.dense and engine.dense.decode_ms,
        "sparse_ms": engine.sparse and engine.sparse.decode_ms,
    }


def render(content: dict[str, Any]) -> str:
    """A line a speedup."""
    lines = ["| asked | predicted | measured | sparsity |", "| --- | --- | --- | --- |"]
    for row in content["rows"]:
        if row["reason"]:
            lines.append(f"| {row['asked']:g} | {row['reason']} | | |")
            continue
        found = row["measured"]
        interval = f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        predicted = float(row["plan"]["predicted_speedup"])
        lines.append(f"| {row['asked']:g} | {predicted:.3f} | {interval} | {row['sparsity']:.3f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("action", choices=("prepare", "run"))
    parser.add_argument("model", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="packages are written here")
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--speedups", type=lambda text: [float(word) for word in text.split(",")], default=[1.5, 2.0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/alloc_latency.json"))
    options = parser.parse_args(arguments)
    if options.action == "prepare":
        prepare(options)
        return
    content = run(options)
    write_file(options.output, (json.dumps(content, indent=1) + "\n").encode())
    print(render(content))


if __name__ == "__main__":
    main()
