"""Every pruner at the same uniform sparsity: perplexity and seconds.

    python benchmarks/pruners.py run MODEL --text wiki.valid.raw --calibration c4.jsonl --work DIR --windows 40 \
        -o benchmarks/results/alloc_pruners.json
    python benchmarks/pruners.py table benchmarks/results/alloc_pruners.json

Each variant is compressed into DIR with the same calibration windows, scored on the same windows of the text, and
removed. Rows already in the output are kept, so the script can be stopped (or told to stop, with --seconds) and run
again. Losses of each window are stored, so that any two rows can be compared in pairs. Seconds are those of `tailcut
compress` as a whole, and of the calls to the pruner alone, which leave out reading, calibration and writing.
"""

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from bench_common import (  # beside this script
    add_device,
    add_model_and_text,
    add_scoring,
    add_table,
    nats_above,
    perform,
)
from quality import Table, head_of, score

from tailcut import plugins
from tailcut.allocation import Allocation, LayerPlan, Pattern, Unstructured, parse_nm
from tailcut.bench.report import markdown_row
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.job import PRUNERS
from tailcut.compress.perplexity import tokenise
from tailcut.compress.run import compress
from tailcut.windows import read_text

NAMES = ("magnitude", "wanda", "wanda-variant", "ria", "dsnot", "sparsegpt", "alps")
TARGETS = ("0.7", "2:4", "0.5", "0.6")
BASE = "wanda"  # what the others are compared with
OUTPUT = Path("benchmarks/results/alloc_pruners.json")


def pattern_of(target: str) -> Pattern:
    return parse_nm(target) if ":" in target else Unstructured(float(target))


@contextmanager
def timed_pruner(name: str, device: str) -> Iterator[list[float]]:
    """Seconds of each call to the pruner while the context lasts, the GPU's work included."""
    module, seconds = plugins.load(PRUNERS, name), list[float]()
    real = module.prune

    def prune(*given: Any) -> Any:  # noqa: ANN401  (a pruner's own arguments)
        began = time.perf_counter()
        result = real(*given)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        return result

    vars(module)["prune"] = prune
    try:
        yield seconds
    finally:
        vars(module)["prune"] = real


def measure(name: str, target: str, windows: Any, options: argparse.Namespace) -> dict[str, Any]:  # noqa: ANN401
    """One row: compress, score, remove."""
    out = options.work / "variant"
    shutil.rmtree(out, ignore_errors=True)
    plan = LayerPlan(pattern_of(target))
    allocation = Allocation(
        {linear.name: plan for linear in find_linears(Checkpoint(options.model))}, {"allocator": "uniform"}
    )
    calibration = Calibration(str(options.calibration), options.samples, options.seqlen, options.seed)
    began = time.perf_counter()
    with timed_pruner(name, options.device) as seconds:
        manifest = compress(options.model, allocation, out, pruner=name, calibration=calibration, device=options.device)
    facts = {"sparsity": manifest.sparsity, "compress_s": time.perf_counter() - began, "prune_s": sum(seconds)}
    row = facts | score(out, {options.context: windows}, options.device, options.batch_tokens)
    shutil.rmtree(out)
    return row


def run(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    windows = tokenise(options.model, read_text(options.text), options.context, options.windows)[0]
    what = "perplexity after one-shot pruning at a uniform sparsity, no recovery"
    table = Table(options.output, head_of(what, options, windows))
    if "dense" not in table.data["rows"]:
        table.add("dense", score(options.model, {options.context: windows}, options.device, options.batch_tokens))
    for target in options.targets:
        for name in options.pruners:
            key = f"{name} {target}"
            if key not in table.data["rows"] and time.perf_counter() - began < options.seconds:
                table.add(key, measure(name, target, windows, options))


def render(content: dict[str, Any]) -> str:
    """Perplexity a pruner and sparsity; in brackets the mean difference to Wanda in nats a token and its standard error."""
    rows, context = content["rows"], content["context"]
    targets = sorted({key.split()[1] for key in rows if " " in key}, key=lambda target: (":" in target, target))
    titles = [target if ":" in target else f"{float(target):.0%}" for target in targets]
    head = ["pruner", *titles, *(f"s at {title}" for title in titles)]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    names = [name for name in NAMES if any(key.split()[0] == name for key in rows)]
    for name in names:
        found = [rows.get(f"{name} {target}") for target in targets]
        base = [rows.get(f"{BASE} {target}") for target in targets]
        cells = [_cell(*pair, context) for pair in zip(found, base, strict=True)]
        times = [f"{row['compress_s']:.0f} ({row['prune_s']:.1f})" if row else "" for row in found]
        lines.append(markdown_row([name, *cells, *times]))
    cal, machine = content["calibration"], content["machine"]
    note = (
        f"{content['model']['name']}, dense {rows['dense'][f'ppl_{context}']:.2f}; the first {content['windows']} windows of "
        f"{context} tokens of {content['text']['name']}; calibration {cal['samples']} x {cal['seqlen']} tokens of "
        f"{cal['file']}, seed {cal['seed']}. In brackets: nats a token above {BASE} over the same windows and the standard "
        f"error; seconds of compress, of the pruner alone. {machine['accelerator'] or machine['cpu']}, commit "
        f"{machine['commit']}."
    )
    return "\n".join([*lines, "", note])


def _cell(row: dict[str, Any] | None, base: dict[str, Any] | None, context: int) -> str:
    if row is None:
        return ""
    value = row[f"ppl_{context}"]
    told = f"{value:.1f}" if value < 1e4 else f"{value:.3g}"
    if base is None or base is row:
        return told
    return "{} ({:+.3f}, {:.3f})".format(told, *nats_above(row[f"nll_{context}"], base[f"nll_{context}"], context))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    add_model_and_text(action, samples=32, seqlen=512, output=OUTPUT)
    add_scoring(action, context=512, windows=None, batch_tokens=2048)
    add_device(action)
    action.add_argument("--pruners", nargs="+", default=list(NAMES))
    action.add_argument("--targets", nargs="+", default=list(TARGETS))
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    perform(parse(arguments), run, render)


if __name__ == "__main__":
    main()
