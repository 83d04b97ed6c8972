"""Decode speed against sparsity on this machine: one dense package, one sparse package a sparsity.

    python benchmarks/cpu_decode.py run --dense PKG --sparse 0.5=PKG50 --sparse 0.8=PKG80 \
        --engines deepsparse,onnxruntime --threads 1,2 -o benchmarks/results/cpu_decode.json
    python benchmarks/cpu_decode.py table benchmarks/results/cpu_decode.json

Packages come from `tailcut export` (and, for DeepSparse, its static variant beside them). Each sparse package is
benched against the dense one in its own ABBA session, so every speedup is paired. The JSON file holds every raw
sample with machine, versions and commit; it is rewritten after each session, and sessions it already holds with the
same packages and workload are not repeated.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from tailcut import codec
from tailcut.bench.report import markdown_row
from tailcut.bench.run import bench, package_facts
from tailcut.bench.tables import interval, milliseconds
from tailcut.files import write_file
from tailcut.progress import console
from tailcut.results import BenchResult, EngineResult, Workload


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    print(render(read(options.file) if options.action == "table" else measure(options)))


def measure(options: argparse.Namespace) -> list[BenchResult]:
    """One session a sparse package and thread count; what the output file already holds is not repeated."""
    results = read(options.output) if options.output.exists() else []
    packages = [Path(argument.partition("=")[2]) for argument in sorted(options.sparse)]
    sessions = [(workload(options, threads), package) for threads in options.threads for package in packages]
    with console() as report:
        for done, (work, package) in enumerate(sessions):
            report("cpu_decode", done, len(sessions), f"{package.name}, {work.threads} threads")
            if known(results, options.dense, package, work, options.engines):
                continue
            # an earlier session of these packages in which an engine could not be measured gives way
            results = [result for result in results if not same(result, options.dense, package, work)]
            results.append(bench(options.dense, package, engines=options.engines, workload=work, report=report))
            write(options.output, results)
    return results


def workload(options: argparse.Namespace, threads: int) -> Workload:
    return Workload(
        prompt_tokens=options.prompt,
        new_tokens=options.new_tokens,
        context=options.context,
        threads=threads,
        blocks=options.blocks,
        prefill_blocks=options.prefill_blocks,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="measure")
    run.add_argument("--dense", type=Path, required=True)
    run.add_argument("--sparse", action="append", required=True, metavar="LABEL=PACKAGE")
    run.add_argument("--engines", type=lambda text: text.split(","), default=["deepsparse", "onnxruntime"])
    run.add_argument("--threads", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    run.add_argument("--prompt", type=int, default=64)
    run.add_argument("--context", type=int, default=256)
    run.add_argument("--new-tokens", type=int, default=16)
    run.add_argument("--blocks", type=int, default=6)
    run.add_argument("--prefill-blocks", type=int, default=2)
    run.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/cpu_decode.json"))
    table = actions.add_parser("table", help="render the Markdown table of a result file")
    table.add_argument("file", type=Path)
    return parser.parse_args(arguments)


def same(result: BenchResult, dense: Path, sparse: Path, workload: Workload) -> bool:
    """Whether a session was about these packages and this workload."""
    hashes = package_facts(dense).sha256, package_facts(sparse).sha256
    return (result.dense.sha256, result.sparse.sha256) == hashes and result.workload == workload


def known(
    results: Sequence[BenchResult], dense: Path, sparse: Path, workload: Workload, engines: Sequence[str]
) -> bool:
    """Whether these packages were benched with this workload before, every engine with a measurement."""
    return any(
        same(result, dense, sparse, workload)
        and {engine.engine for engine in result.engines if engine.status == "measured"} >= set(engines)
        for result in results
    )


def write(path: Path, results: Sequence[BenchResult]) -> None:
    body = {"sessions": [json.loads(codec.to_json(result)) for result in results]}
    write_file(path, (json.dumps(body, ensure_ascii=False) + "\n").encode())


def read(path: Path) -> list[BenchResult]:
    sessions = json.loads(path.read_bytes())["sessions"]
    return [codec.from_json(BenchResult, json.dumps(session), str(path)) for session in sessions]


def render(results: Sequence[BenchResult]) -> str:
    """Markdown: machine line, then one row an engine, thread count and sparsity."""
    if not results:
        return "no sessions"
    machine, work = results[0].machine, results[0].workload
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    commits = ", ".join(dict.fromkeys(str(result.machine.commit) for result in results))
    header = (
        "engine",
        "threads",
        "sparsity",
        "dense",
        "sparse",
        "speedup",
        "byte ceiling",
        "share dense",
        "share sparse",
    )
    ordered = sorted(results, key=lambda result: (result.workload.threads, result.sparse.sparsity))
    names = list(dict.fromkeys(engine.engine for result in results for engine in result.engines))
    rows = [row(result, engine) for name in names for result in ordered if (engine := result.engine(name))]
    return "\n".join(
        [
            (
                f"{machine.cpu} ({machine.cores} cores, {' '.join(machine.isa)}), {versions}, commits {commits}. "
                f"Batch {work.batch}, context {work.context}, {work.blocks} ABBA blocks; speedup is the ratio of medians "
                f"with its {work.confidence:.0%} bootstrap interval."
            ),
            "",
            markdown_row(header),
            "|" + " --- |" * len(header),
            *(markdown_row(cells) for cells in rows),
        ]
    )


def row(result: BenchResult, engine: EngineResult) -> tuple[str, ...]:
    start = (f"{engine.engine} {engine.version}".strip(), str(result.workload.threads), f"{result.sparse.sparsity:.2f}")
    if engine.dense is None or engine.sparse is None:
        return (*start, "not measured", engine.reason, "", "", "", "")
    ceiling = f"{engine.byte_ratio:.2f}x" if engine.byte_ratio else ""
    shares = [
        "in cache"
        if side.roofline.share is None
        else f"{'~' if side.roofline.estimate else ''}{side.roofline.share:.0%}"
        for side in (engine.dense, engine.sparse)
    ]
    medians = milliseconds(engine.dense.decode_ms), milliseconds(engine.sparse.decode_ms)
    return (*start, *medians, interval(engine.decode_speedup), ceiling, *shares)


if __name__ == "__main__":
    main()
