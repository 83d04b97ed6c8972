"""Zero-shot accuracy of a model and of sparse copies of it: BoolQ, RTE, WinoGrande, ARC-e, OpenBookQA through lm-eval.

    python benchmarks/zero_shot.py run MODEL --tasks DIR --calibration c4.jsonl --work DIR --device cuda
    python benchmarks/zero_shot.py run MODEL --tasks DIR --calibration c4.jsonl --work DIR --also auto-70 --limit 200
    python benchmarks/zero_shot.py table benchmarks/results/alloc_zero_shot.json

Each variant "PRUNER ALLOCATOR SPARSITY" (or N:M) is compressed into DIR, where it stays for a second run; directories that
exist already are named with --also. Answers of every item are in the result, so that any two models can be compared in
pairs. DIR holds the tasks' files as docs/zero-shot.md has them.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_common import (  # beside this script
    add_device,
    add_model_and_text,
    add_table,
    calibration_of,
    machine_of,
    perform,
)
from quality import Variant

from tailcut import codec
from tailcut.accuracy import Estimate, Row, ZeroShot
from tailcut.bench.report import markdown_row
from tailcut.compress.calibration import Calibration
from tailcut.compress.measure import measure
from tailcut.compress.run import compress
from tailcut.compress.zero_shot import Options, forget_work, zero_shot
from tailcut.compress.zero_shot_tasks import TASKS, read_tasks
from tailcut.files import write_file
from tailcut.progress import console

VARIANTS = ("sparsegpt uniform 0.5", "sparsegpt alpha 0.5", "wanda uniform 0.5", "sparsegpt uniform 2:4")
OUTPUT = Path("benchmarks/results/alloc_zero_shot.json")


def made(options: argparse.Namespace) -> tuple[list[Path], dict[str, float]]:
    """The directories of all variants, compressed where they are not there yet, and the seconds it took."""
    calibration = Calibration(str(options.calibration), options.samples, options.seqlen, options.seed)
    scores, directories, seconds = None, [], {}
    for words in options.variants:
        variant = Variant(*words.split())
        out = options.work / words.replace(" ", "-").replace(":", "of")
        directories.append(out)
        if out.is_dir():
            continue
        scores = scores or measure(options.model, metrics=("alpha_mid", "alpha_peak"), device=options.device).scores
        began = time.perf_counter()
        compress(
            options.model,
            variant.allocation(scores),
            out,
            pruner=variant.pruner,
            calibration=calibration,
            device=options.device,
        )
        seconds[out.name] = time.perf_counter() - began
    return directories, seconds


def run(options: argparse.Namespace) -> None:
    tasks = read_tasks(options.tasks, options.names)
    sparse, seconds = made(options)
    began = time.perf_counter()
    asked = Options(options.device, options.dtype, options.batch, options.limit)
    models = [options.model, *sparse, *options.also]
    for count in range(1, len(models) + 1):  # answers are kept, so a run that is stopped leaves the models it finished
        with console() as report:
            result = zero_shot(models[:count], tasks, options.output, asked, report)
        write(options, result, seconds, time.perf_counter() - began)
    forget_work(options.output)


def write(options: argparse.Namespace, result: ZeroShot, seconds: dict[str, float], took: float) -> None:
    """The output as it is so far."""
    content = {
        "what": "zero-shot accuracy after one-shot pruning, no recovery",
        "machine": machine_of(options),
        "calibration": calibration_of(options),
        "compress_s": seconds,
        "zero_shot_s": took,
        "result": json.loads(codec.to_json(result)),
    }
    write_file(options.output, (json.dumps(content, indent=1) + "\n").encode())


def render(content: dict[str, Any]) -> str:
    """A row a model, a column a task (acc, in percent with its standard error), the mean and its paired change to dense."""
    result = codec.from_json(ZeroShot, json.dumps(content["result"]), "alloc_zero_shot.json")
    found = {(row.model, row.task): row for row in result.rows if row.metric == "acc"}
    lines = [markdown_row(["model", *result.tasks, "mean", "mean less dense", "recovery"])]
    lines.append("|" + " --- |" * (4 + len(result.tasks)))
    for model in result.models:
        mean = found[model.name, "mean"]
        cells = [_percent(found[model.name, task].accuracy) for task in result.tasks]
        name = "dense" if model is result.models[0] else re.sub(r"(\d)of(\d)", r"\1:\2", model.name.replace("-", " "))
        lines.append(markdown_row([name, *cells, _percent(mean.accuracy), *_change(mean)]))
    cal, machine, limit = content["calibration"], content["machine"], result.settings["limit"]
    counts = ", ".join(f"{file.items} of {file.items_in_file} {name}" for name, file in result.tasks.items())
    note = (
        f"{result.models[0].name}, accuracy in percent with its standard error, no examples in the prompt; the change is over "
        f"the same items. {'All' if limit is None else 'The first'} items: {counts}. {result.settings['dtype']}, lm-eval "
        f"{result.versions['lm_eval']}; calibration {cal['samples']} x {cal['seqlen']} tokens of {cal['file']}, seed "
        f"{cal['seed']}. {machine['accelerator'] or machine['cpu']}, commit {machine['commit']}."
    )
    return "\n".join([*lines, "", note])


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ± {100 * estimate.error:.1f}"


def _change(row: Row) -> list[str]:
    if row.change is None or row.recovery is None:
        return ["", ""]
    return [f"{100 * row.change.value:+.1f} ± {100 * row.change.error:.1f}", f"{100 * row.recovery:.1f} %"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    add_model_and_text(action, samples=128, seqlen=2048, output=OUTPUT)
    add_device(action)
    action.add_argument("--tasks", type=Path, required=True)
    action.add_argument("--names", nargs="+", default=list(TASKS))
    action.add_argument("--variants", nargs="*", default=list(VARIANTS))
    action.add_argument("--also", nargs="*", type=Path, default=[], help="sparse directories that exist already")
    action.add_argument("--limit", type=int, default=None)
    action.add_argument("--dtype", default="float32")
    action.add_argument("--batch", type=int, default=8)
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    perform(parse(arguments), run, render)


if __name__ == "__main__":
    main()
