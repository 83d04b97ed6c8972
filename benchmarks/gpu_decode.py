"""Decode steps of whole models on a GPU: the same lean loop, dense, 2:4, unstructured and int4, random weights.

    python benchmarks/gpu_decode.py run -o benchmarks/results/gpu_decode.json
    python benchmarks/gpu_decode.py table benchmarks/results/gpu_decode.json

One step is one CUDA graph: static cache, fused norms, rotary positions and attention, the matrices of each contender. The
output matrix is dense bfloat16 for all. `dense` is cuBLAS, `dense compiled` torch.compile with tuning; speedups are over
the faster of the two. Contenders take their turns in five rounds, each step is timed by the GPU's own clock.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tailcut import codec
from tailcut.bench.gpu import DECODERS, GpuPlan, GpuResult, measure
from tailcut.bench.gpu_tables import render
from tailcut.progress import console

OUTPUT = Path("benchmarks/results/gpu_decode.json")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "run":
        codec.save(run(options), options.output)
    print(render(read(options.output)))


def run(options: argparse.Namespace) -> GpuResult:
    """One session a batch size, joined: the machine is the same."""
    results = []
    with console() as report:
        for batch in options.batches:
            plan = GpuPlan(
                shapes=(),
                models=tuple(options.models),
                decode_contenders=tuple(options.contenders),
                context=options.context,
                batch=batch,
                steps=options.steps,
                tune=not options.no_tune,
            )
            results.append(measure(plan, report))
    copies = tuple(rate for result in results for rate in result.copy_gb_per_s)
    return replace(results[0], copy_gb_per_s=copies, decodes=tuple(d for result in results for d in result.decodes))


def read(path: Path) -> GpuResult:
    return codec.load(GpuResult, path)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    run_parser = actions.add_parser("run", help="measure")
    run_parser.add_argument("--models", type=lambda text: text.split(","), default=["llama-7b"])
    run_parser.add_argument("--contenders", type=lambda text: text.split(","), default=list(DECODERS))
    run_parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1])
    run_parser.add_argument("--context", type=int, default=512)
    run_parser.add_argument("--steps", type=int, default=50)
    run_parser.add_argument("--no-tune", action="store_true", help="let the dispatch's rule decide")
    run_parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    table = actions.add_parser("table", help="render the Markdown table of a result file")
    table.add_argument("output", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
