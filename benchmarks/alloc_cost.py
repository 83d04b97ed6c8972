"""Cost of every allocator on a model, and of `auto` beside a SparseGPT run on the same calibration text.

    python benchmarks/alloc_cost.py run MODEL --work DIR -o benchmarks/results/alloc_cost.json
    python benchmarks/alloc_cost.py table benchmarks/results/alloc_cost.json

Each row is measured in a process of its own: an allocator's scores (with an empty cache of eigenvalues) and its arithmetic;
`sparsegpt`, which is `tailcut compress` of a uniform plan into DIR; and `auto`, with its scores, told to take BUDGET times
SparseGPT's seconds (the median of the rows that are there) less what its scores took. Memory is that of the measuring process:
anonymous pages, without mapped files, and on a GPU the most that was allocated there at once. Rows already in the output are kept, so the script can be stopped; more of a row with
--repeat. `metrics.py` has the metrics one by one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench_common import add_table, machine_of, perform  # beside this script
from esd import AnonymousMemory, anonymous_bytes

from tailcut import plugins
from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.bench.report import markdown_row
from tailcut.checkpoint import Checkpoint
from tailcut.compress import allocators
from tailcut.files import write_file

OUTPUT: Final = Path("benchmarks/results/alloc_cost.json")
PRUNER: Final = "sparsegpt"
SEARCH: Final = "auto"
ARITHMETIC: Final = 5  # plans an allocator makes in a row
# one needs a table of an engine's times, and a speed in place of a sparsity
NAMES: Final = (*(name for name in plugins.names(allocators.PACKAGE) if name != "latency"), PRUNER, SEARCH)
Sample = dict[str, Any]


@contextmanager
def watched(sample: Sample) -> Iterator[None]:
    """Notes the memory before and the most of it meanwhile."""
    memory = AnonymousMemory()
    sample["before_bytes"] = anonymous_bytes()
    memory.start()
    try:
        yield
    finally:
        memory.stop.set()
        memory.join()
        sample["peak_bytes"] = max(memory.peak_bytes, anonymous_bytes())


def measure_once(options: argparse.Namespace, name: str) -> Sample:
    """One sample in this process."""
    sample: Sample = {"load_average": os.getloadavg()[0]}
    shutil.rmtree(options.work / name, ignore_errors=True)
    (options.work / name).mkdir(parents=True)
    with watched(sample):
        began = time.perf_counter()
        if name == PRUNER:
            _compress(options)
        elif name == SEARCH:
            _search(options, sample)
        else:
            _allocate(options, name, sample)
        sample["s"] = time.perf_counter() - began
    if options.device == "cuda":
        import torch

        sample["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    shutil.rmtree(options.work / name)
    return sample


def _allocate(options: argparse.Namespace, name: str, sample: Sample) -> None:
    scores = _scores(options, name, allocators.load(name).METRICS, sample)
    sample["allocate_s"] = []
    for _ in range(ARITHMETIC):
        began = time.perf_counter()
        allocators.allocate(name, scores, Budget(options.sparsity), allocators.Settings())
        sample["allocate_s"].append(time.perf_counter() - began)


def _scores(options: argparse.Namespace, name: str, metrics: Sequence[str], sample: Sample) -> LayerScores:
    """The scores with these metrics, or a cheap one where the allocator looks at shapes alone; nothing is cached before."""
    from tailcut.compress.measure import measure

    began = time.perf_counter()
    found = measure(
        options.model,
        metrics=metrics or ("magnitude",),
        device=options.device,
        cache=options.work / name,
        calibration=_text(options),
    ).scores
    sample["scores_s"] = time.perf_counter() - began if metrics else 0.0
    return found


def _compress(options: argparse.Namespace) -> None:
    from tailcut.compress.discovery import find_linears
    from tailcut.compress.run import compress

    plans = {linear.name: _plan(options.sparsity) for linear in find_linears(Checkpoint(options.model))}
    allocation, out = Allocation(plans, {"allocator": "uniform"}), options.work / PRUNER / "out"
    compress(options.model, allocation, out, pruner=PRUNER, calibration=_text(options), device=options.device)


def _plan(sparsity: float) -> Any:  # noqa: ANN401  (a value of the lobby)
    from tailcut.allocation import LayerPlan, Unstructured

    return LayerPlan(Unstructured(sparsity))


def _search(options: argparse.Namespace, sample: Sample) -> None:
    from tailcut.compress.searches import Effort, Task, load, search

    scores = _scores(options, SEARCH, load(SEARCH).METRICS, sample)
    minutes = (options.allowed_s - sample["scores_s"]) / 60.0
    if minutes <= 0.0:
        raise SystemExit(
            f"auto: its scores alone took {sample['scores_s']:.0f} s of the {options.allowed_s:.0f} allowed"
        )
    task = Task(
        options.model, scores, Budget(options.sparsity), PRUNER, _text(options), Effort(minutes=minutes), options.device
    )
    said = search(SEARCH, task).provenance
    sample |= {"allowed_s": options.allowed_s}
    sample |= {key: said[key] for key in ("winner", "finals", "candidates", "generations") if key in said}


def _text(options: argparse.Namespace) -> Any:  # noqa: ANN401  (of a room that is slow to import)
    from tailcut.compress.calibration import Calibration

    return Calibration(options.calibration, options.samples, options.seqlen, options.seed)


def in_a_process(options: argparse.Namespace, name: str) -> Sample:
    words = [sys.executable, __file__, "run", str(options.model), "--work", str(options.work), "--one", name]
    for key in ("calibration", "samples", "seqlen", "seed", "sparsity", "device", "allowed_s"):
        words += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    sample: Sample = json.loads(done.stdout.splitlines()[-1])
    return sample


def run(options: argparse.Namespace) -> None:
    """What the output lacks, SparseGPT before auto."""
    until = time.perf_counter() + options.seconds
    head = head_of(options)
    models = json.loads(options.output.read_bytes())["models"] if options.output.is_file() else {}
    mine = models.setdefault(options.model.resolve().name, head | {"rows": {}})
    if any(mine[key] != head[key] for key in ("model", "calibration", "sparsity", "device")):
        raise SystemExit(f"{options.output}: this model's rows were measured otherwise; give another -o")
    for name in sorted(options.names, key=NAMES.index):
        row = mine["rows"].setdefault(name, [])
        while len(row) < options.repeat and time.perf_counter() < until:
            if name == SEARCH:
                options.allowed_s = options.budget * pruner_seconds(mine["rows"])
            row.append(in_a_process(options, name))
            content = {"what": "cost of the allocators", "unit": "seconds, bytes", "models": models}
            write_file(options.output, (json.dumps(content, indent=1) + "\n").encode())
            print(name, json.dumps(row[-1]), flush=True)


def pruner_seconds(rows: dict[str, list[Sample]]) -> float:
    if not rows.get(PRUNER):
        raise SystemExit(f"auto's time is a multiple of {PRUNER}'s: measure {PRUNER} first")
    return median(float(sample["s"]) for sample in rows[PRUNER])


def head_of(options: argparse.Namespace) -> dict[str, Any]:
    checkpoint = Checkpoint(options.model)
    return {
        "machine": machine_of(options),
        "model": checkpoint.fingerprint(),
        "parameters": checkpoint.total_parameters(),
        "calibration": {
            "text": Path(options.calibration).name,
            "samples": options.samples,
            "seqlen": options.seqlen,
            "seed": options.seed,
        },
        "sparsity": options.sparsity,
        "device": options.device,
    }


def render(content: dict[str, Any]) -> str:
    """A table a model: medians; auto's as a multiple of SparseGPT's."""
    return "\n\n".join(_table(name, model) for name, model in content["models"].items())


def _table(name: str, model: dict[str, Any]) -> str:
    on_gpu = model["device"] == "cuda"
    head = ["allocator", "scores, s", "arithmetic, ms", "all, s", "over SparseGPT", "memory added, MB"]
    head += ["GPU memory, MB"] if on_gpu else []
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    rows = {key: row for key, row in model["rows"].items() if row}
    base = pruner_seconds(rows) if PRUNER in rows else None
    for key in sorted(rows, key=NAMES.index):
        row, samples = rows[key], [float(sample["s"]) for sample in rows[key]]
        scores = [float(sample["scores_s"]) for sample in row if "scores_s" in sample]
        arithmetic = [seconds for sample in row for seconds in sample.get("allocate_s", ())]
        added = median(sample["peak_bytes"] - sample["before_bytes"] for sample in row)
        cells = [f"{median(scores):.1f}" if scores else "", f"{1e3 * median(arithmetic):.1f}" if arithmetic else ""]
        ratio = "" if base is None else f"{median(samples) / base:.2f}"
        gpu = [f"{max(sample['gpu_peak_bytes'] for sample in row) / 1e6:.0f}"] if on_gpu else []
        lines.append(markdown_row([key, *cells, f"{median(samples):.1f}", ratio, f"{added / 1e6:.0f}", *gpu]))
    cal, machine = model["calibration"], model["machine"]
    said = [f"auto chose {sample['winner']} ({sample['finals']})." for sample in rows.get(SEARCH, ())[-1:]]
    where = machine["accelerator"] or machine["cpu"]
    note = (
        f"{name}, {model['parameters'] / 1e6:.0f} M parameters, {model['sparsity']:.0%}; calibration {cal['samples']} x "
        f"{cal['seqlen']} tokens of {cal['text']}. {where}, commit {machine['commit']}."
    )
    return "\n".join([*lines, "", " ".join([note, *said])])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    action.add_argument("model", type=Path)
    action.add_argument("--work", type=Path, required=True, help="room for a copy of the model")
    action.add_argument("--calibration", default="demo", help="demo, or a text file")
    action.add_argument("--samples", type=int, default=32)
    action.add_argument("--seqlen", type=int, default=512)
    action.add_argument("--seed", type=int, default=0)
    action.add_argument("--sparsity", type=float, default=0.5)
    action.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    action.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    action.add_argument("--repeat", type=int, default=1, help="samples of each row")
    action.add_argument("--budget", type=float, default=10.0, help="auto's seconds over SparseGPT's")
    action.add_argument("--seconds", type=float, default=float("inf"), help="no new sample is begun after so many")
    action.add_argument("--commit", help="of tailcut, where the checkout holds no git history")
    action.add_argument(
        "--one", choices=NAMES, help="measure this in this process and print the sample (used by itself)"
    )
    action.add_argument("--allowed-s", type=float, default=0.0, help="auto's seconds (used by itself)")
    action.add_argument("-o", "--output", type=Path, default=OUTPUT)
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "run" and options.one:
        print(json.dumps(measure_once(options, options.one)))
        return
    perform(options, run, render)


if __name__ == "__main__":
    main()
