"""Products with single matrices on a GPU: tailcut's 2:4 and unstructured kernels, cuSPARSELt and int4 beside cuBLAS.

    python benchmarks/gpu_kernels.py run -o benchmarks/results/gpu_kernels.json
    python benchmarks/gpu_kernels.py table benchmarks/results/gpu_kernels.json

The matrices are those of LLaMA-7B, Llama-3-8B and Mistral, x has 1 to 2048 rows. One time is that of a CUDA graph over
distinct copies of the matrix (800 MB and more, far beyond the L2 cache) divided by its length; all contenders of a case
are replayed in turn, each round beginning with another. Every sample is kept. `tailcut bench-gpu` runs the same.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cpu_kernels import shapes_of  # beside this script

from tailcut import codec
from tailcut.bench.gpu import CONTENDERS, DENSE, ROWS, SHAPES, GpuPlan, GpuResult, measure
from tailcut.bench.gpu_tables import render
from tailcut.progress import console

OUTPUT = Path("benchmarks/results/gpu_kernels.json")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "run":
        with console() as report:
            codec.save(measure(plan_of(options), report), options.output)
    print(render(read(options.output)))


def plan_of(options: argparse.Namespace) -> GpuPlan:
    return GpuPlan(
        shapes=tuple(options.shapes),
        rows=tuple(options.rows),
        contenders=tuple(dict.fromkeys((DENSE, *options.contenders))),
        models=(),
        rounds=options.rounds,
        pool_bytes=options.pool_bytes,
        tune=not options.no_tune,
    )


def read(path: Path) -> GpuResult:
    return codec.load(GpuResult, path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="measure")
    run.add_argument("--shapes", type=shapes_of, default=list(SHAPES), metavar="OUTxIN,…")
    run.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=list(ROWS))
    run.add_argument("--contenders", type=lambda text: text.split(","), default=list(CONTENDERS))
    run.add_argument("--rounds", type=int, default=15)
    run.add_argument("--pool-bytes", type=int, default=800_000_000)
    run.add_argument("--no-tune", action="store_true", help="let the dispatch's rule decide")
    run.add_argument("-o", "--output", type=Path, default=OUTPUT)
    table = actions.add_parser("table", help="render the Markdown tables of a result file")
    table.add_argument("output", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
