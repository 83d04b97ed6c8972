"""Does a plan made for a decode speed reach it? Cost table, plans by speed, packages, and a paired bench of each.

    python benchmarks/alloc_latency.py table MODEL SCORES.json --work DIR                        # timed
    python benchmarks/alloc_latency.py packages MODEL SCORES.json --work DIR --speedups 1.5,2    # not timed
    python benchmarks/alloc_latency.py bench MODEL SCORES.json --work DIR -o result.json         # timed

`table` exports the dense package if it is not there and measures what its products cost. `packages` allocates for each
speedup (latency allocator, every matrix by itself), cuts by magnitude (the speed does not depend on which weights go)
and exports. `bench` times dense beside sparse. The result holds the table with its samples, each plan's prediction and
the measured speedup with its interval.
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


def make_table(options: argparse.Namespace) -> None:
    """The dense package of the model, made once, and what its products cost."""
    package = options.work / "dense"
    if not package.is_dir():
        export(options.model, package, weights=options.weights, check=False)
    with console() as report:
        effort = Effort(rounds=options.rounds, steps=options.steps)
        table = measure_costs(package, threads=options.threads, effort=effort, cut=options.cut, report=report)
    codec.save(table, options.work / "cost.json")


def make_packages(options: argparse.Namespace) -> None:
    """A plan and a package for each speedup; what is out of reach leaves its reason in rows.json."""
    table = codec.load(CostTable, options.work / "cost.json")
    scores = codec.load(LayerScores, options.scores)
    rows = [_package(speedup, scores, table, options) for speedup in options.speedups]
    write_file(options.work / "rows.json", json.dumps(rows).encode())


def _package(speedup: float, scores: LayerScores, table: CostTable, options: argparse.Namespace) -> dict[str, Any]:
    settings = Settings(cost=table, granularity="matrix")
    try:
        plan = allocate("latency", scores, Budget(0.0, speedup=speedup), settings)
    except InputError as error:
        return {"asked": speedup, "reason": str(error)}
    cut, package = options.work / "cut", options.work / f"package-{speedup:g}"
    for old in (cut, package):
        shutil.rmtree(old, ignore_errors=True)
    with console() as report:
        made = compress(options.model, plan, cut, pruner="magnitude", calibration=Calibration(), report=report)
        export(cut, package, weights=options.weights, check=False, report=report)
    return {"asked": speedup, "plan": dict(plan.provenance), "sparsity": made.sparsity, "package": package.name}


def make_result(options: argparse.Namespace) -> dict[str, Any]:
    """The table and, for each speedup, the plan's prediction beside what was measured."""
    rows = json.loads((options.work / "rows.json").read_bytes())
    return {
        "what": "decode speed that a plan predicts from a cost table, and what a paired bench measures",
        "model": options.model.name,
        "table": json.loads((options.work / "cost.json").read_bytes()),
        "rows": [row | (_bench(row.pop("package"), options) if "package" in row else {}) for row in rows],
    }


def _bench(package: str, options: argparse.Namespace) -> dict[str, Any]:
    workload = Workload(
        prompt_tokens=1,
        context=4 * options.steps,
        new_tokens=options.steps,
        threads=options.threads,
        blocks=options.blocks,
        prefill_blocks=0,
    )
    with console() as report:
        pair = options.work / "dense", options.work / package
        (engine,) = bench(*pair, engines=("tailcut",), workload=workload, report=report).engines
    return {
        "reason": engine.reason,
        "measured": engine.decode_speedup and asdict(engine.decode_speedup),
        "dense_ms": engine.dense and engine.dense.decode_ms,
        "sparse_ms": engine.sparse and engine.sparse.decode_ms,
        "cautions": engine.cautions,
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
    return "\n".join([*lines, "", _note(content)])


def _note(content: dict[str, Any]) -> str:
    """Where this was measured, and what the runs themselves say against it."""
    table = content["table"]
    machine, precisions = table["machine"], ", ".join(table["dense_step_ms"])
    steps = [ms for found in table["dense_step_ms"].values() for ms in found]
    said = {caution for row in content["rows"] for caution in row.get("cautions", ()) if "not asked for" not in caution}
    note = (
        f"{content['model']}, {precisions}, engine {table['engine']}, {table['threads']} thread(s), {machine['cpu']}, commit "
        f"{machine['commit']}; dense steps of the table: {min(steps):.1f} to {max(steps):.1f} ms. Every matrix has its own "
        "sparsity; in brackets the 95 % interval."
    )
    return f"{note} Cautions: {'; '.join(sorted(said))}." if said else note


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("action", choices=("table", "packages", "bench"))
    parser.add_argument("model", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="packages are written here")
    parser.add_argument("--weights", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cut", type=Path, help="for `table`: a package of an earlier plan, to calibrate by")
    parser.add_argument("--speedups", type=lambda text: [float(word) for word in text.split(",")], default=[1.5, 2.0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/alloc_latency.json"))
    options = parser.parse_args(arguments)
    if options.action == "table":
        make_table(options)
    elif options.action == "packages":
        make_packages(options)
    else:
        content = make_result(options)
        write_file(options.output, (json.dumps(content, indent=1) + "\n").encode())
        print(render(content))


if __name__ == "__main__":
    main()
