"""Perplexity against bits a weight: uniform, alpha-guided and searched bits, and half the weights cut besides.

    python benchmarks/alloc_bits.py run MODEL --text wiki.test.raw --calibration c4.jsonl --work DIR --device cuda \
        --workers 6 --minutes 9 --search-minutes 3 -o benchmarks/results/alloc_bits.json
    python benchmarks/alloc_bits.py run MODEL --text TEXT --work DIR --only "rtn [34]" -o benchmarks/results/alloc_clip.json
    python benchmarks/alloc_bits.py list
    python benchmarks/alloc_bits.py table benchmarks/results/alloc_bits.json

Variants go to worker processes that share one device, most important first; nothing is begun after the minutes, nor a
search (`auto`, on calibration text) that would not end within them. Finished rows are in the output at once, and an
interrupted compression or search goes on, so the script can be stopped and run again. --plan NAME=allocation.json adds a
row for a plan from elsewhere.

Two sizes a row, both with scales (32 bits each) and, where zeros are left out, one mask bit a weight, the smaller layout
counted: `bits_stored` is what a package holds, where 3 and 2 bits take the place of 4; `bits_tight` is what they would take
if they were packed at their own width, which no engine here reads.
"""

import argparse
import json
import multiprocessing
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import alloc_bits_table as shown  # beside this script
import numpy as np
from bench_common import add_table, machine_of, perform

from tailcut import codec
from tailcut.allocation import Allocation, Budget, LayerScores
from tailcut.bench.machine import usable_cpus
from tailcut.checkpoint import Checkpoint
from tailcut.compress import searches
from tailcut.compress.allocators import Settings, allocate
from tailcut.compress.calibration import Calibration
from tailcut.compress.measure import measure
from tailcut.compress.perplexity import directory_nll, tokenise
from tailcut.compress.run import compress
from tailcut.errors import InputError
from tailcut.files import write_file
from tailcut.manifest import Manifest
from tailcut.quantised import groups
from tailcut.windows import Tokens, perplexity, read_text

OUTPUT: Final = Path("benchmarks/results/alloc_bits.json")


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table. `share`: who gets which bits; uniform: all the same, or blocks in turn if they are no choice."""

    bits: float | None
    quantiser: str = "gptq"
    sparsity: float = 0.0
    pruner: str = "sparsegpt"
    clip: bool = True
    share: Literal["uniform", "alpha", "auto"] = "uniform"
    plan: str = ""  # NAME=FILE of an allocation; the rest is then only the way of cutting

    @property
    def key(self) -> str:
        if self.plan:
            return f"{self.plan.partition('=')[0]} {self.quantiser}"
        cut = f"{self.pruner} {self.sparsity:g}" if self.sparsity else ""
        shared = "" if self.share == "uniform" else f" {self.share}"
        rounded = f"{self.quantiser} {self.bits:g}{shared}" + ("" if self.clip else " unclipped") if self.bits else ""
        return " + ".join(part for part in (cut, rounded) if part)

    @property
    def budget(self) -> Budget:
        return Budget(self.sparsity, bits=self.bits)

    def allocation(self, scores: LayerScores, options: argparse.Namespace) -> Allocation:
        if self.plan:
            return codec.load(Allocation, Path(self.plan.partition("=")[2]))
        if self.share == "auto":
            return searches.search("auto", self.task(scores, options))
        bit_tau = None if self.bits is None or self.share == "alpha" else 0.0
        return allocate("uniform", scores, self.budget, Settings(bit_tau=bit_tau))

    def task(self, scores: LayerScores, options: argparse.Namespace) -> searches.Task:
        """What is searched: with the text that the model is cut with, and no other. Its journal stays in --work."""
        return searches.Task(
            options.model,
            scores,
            self.budget,
            self.pruner,
            calibration_of(options),
            effort_of(options),
            options.device,
            options.work / f"{self.key.replace(' ', '-')}.search.jsonl",
            self.quantiser,
        )


MEANS: Final = (4.0, 3.0, 3.5, 2.5, 6.0, 5.0, 8.0)  # mean bits, what is asked for first, first
SHARES: Final[tuple[Literal["uniform", "alpha", "auto"], ...]] = ("uniform", "alpha", "auto")
CURVE: Final = tuple(
    Variant(mean, quantiser, share=share)
    for quantiser in ("gptq", "rtn")
    for mean in MEANS
    for share in (SHARES if mean < 8 else SHARES[:1])
)
HALVED: Final = (
    Variant(None, sparsity=0.5),
    Variant(4, "joint", 0.5),
    Variant(8, "joint", 0.5),
    Variant(4, "gptq", 0.5),
    Variant(8, "gptq", 0.5),
    Variant(8, "joint", 0.6),  # as many bytes as dense int4
    Variant(4, "rtn", 0.5),
    Variant(8, "rtn", 0.5),
    Variant(4, "joint", 0.25),  # likewise
    Variant(3, "joint", 0.5),
    Variant(8, "joint", 0.7),  # as many as dense 3 bits, if those were packed tightly
)
UNCLIPPED: Final = tuple(Variant(bits, quantiser, clip=False) for quantiser in ("rtn", "gptq") for bits in (4, 3))
# what the issue asks first, so that a run that is stopped early still says something
VARIANTS: Final = (*CURVE[:12], *HALVED[:6], *CURVE[12:], *HALVED[6:], *UNCLIPPED)


def sizes(manifest: Manifest) -> dict[str, float]:
    """Bits a weight of the matrices, stored as packages do and tightly; matrices without bits count as bfloat16."""
    total = {"bits_stored": 0.0, "bits_tight": 0.0}
    for layer in manifest.layers.values():
        rows, columns = layer.shape
        bits = layer.plan.bits or 16
        scales = 0 if layer.plan.bits is None else 32 * rows * (1 if bits == 8 else groups(columns))
        for name, width in (("bits_stored", max(bits, 4)), ("bits_tight", bits)):
            masked = width * (rows * columns - layer.zeros) + 8 * rows * -(-columns // 8)
            total[name] += min(width * rows * columns, masked) + scales
    return {name: value / manifest.prunable_parameters for name, value in total.items()}


def score(model: Path, windows: Tokens, options: argparse.Namespace) -> dict[str, Any]:
    nll = directory_nll(model, windows, device=options.device, batch=options.batch)
    return {
        "ppl": perplexity(nll, windows.shape[1] - 1),
        "nll": [round(float(value), 3) for value in nll],
    }


def measured(options: argparse.Namespace, variant: Variant, scores: LayerScores, windows: Tokens) -> dict[str, Any]:
    """One variant made, scored and removed."""
    out = options.work / variant.key.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    planned = time.perf_counter()
    allocation = variant.allocation(scores, options)
    began = time.perf_counter()
    manifest = compress(
        options.model,
        allocation,
        out,
        pruner=variant.pruner,
        quantiser=variant.quantiser,
        clip=variant.clip,
        calibration=calibration_of(options),
        device=options.device,
    )
    seconds = time.perf_counter() - began
    errors = [layer.output_error for layer in manifest.layers.values() if layer.output_error is not None]
    row: dict[str, Any] = {"zeros": manifest.sparsity, **sizes(manifest), "compress_s": seconds}
    row |= {"plan_s": began - planned} if variant.share == "auto" else {}
    told = ("bit_counts", "bits_planned", "winner", "finals", "measurements", "seconds")
    row |= {key: allocation.provenance[key] for key in told if key in allocation.provenance}
    row |= {"output_error_median": float(np.median(errors))} if errors else {}
    row |= score(out, windows, options)
    shutil.rmtree(out)
    return row


def calibration_of(options: argparse.Namespace) -> Calibration:
    return Calibration(str(options.calibration), options.samples, options.seqlen, options.seed)


def effort_of(options: argparse.Namespace) -> searches.Effort:
    if options.search_evaluations is not None:
        return searches.Effort(evaluations=options.search_evaluations)
    return searches.Effort(minutes=options.search_minutes)


def head_of(options: argparse.Namespace, windows: Tokens) -> dict[str, Any]:
    text = read_text(options.text)
    setup = {
        "model": {"name": options.model.resolve().name, "fingerprint": Checkpoint(options.model).fingerprint()},
        "text": {"name": text.name, "sha256": text.sha256, "joining": text.joining},
        "context": options.context,
        "windows": len(windows),
        "calibration": {name: getattr(options, name) for name in ("samples", "seqlen", "seed")}
        | {"source": Path(options.calibration).name},
        "device": options.device,
    }
    return {
        "what": "perplexity against bits a weight, no recovery",
        "machine": machine_of(options),
        "setup": setup,
        "rows": {},
    }


def run(options: argparse.Namespace) -> None:
    ends = time.monotonic() + 60 * options.minutes
    windows, _ = tokenise(options.model, read_text(options.text), options.context, options.windows)
    data = head_of(options, windows)
    if options.output.is_file():
        earlier = json.loads(options.output.read_bytes())
        if earlier.get("setup") != data["setup"]:
            raise InputError(f"{options.output}: was measured with another setup; choose another output")
        data["rows"] = earlier["rows"]
    if "dense" not in data["rows"]:
        add(options.output, data, "dense", score(options.model, windows, options))
    plans = [Variant(1, quantiser, plan=plan) for plan in options.plan for quantiser in ("gptq", "rtn")]
    wanted = [variant for variant in (*plans, *VARIANTS) if re.search(options.only, variant.key)]
    todo = [variant for variant in wanted if variant.key not in data["rows"]]
    searched = any(variant.share == "auto" for variant in todo)
    metrics = searches.load("auto").METRICS if searched else ("alpha_peak",)
    text = calibration_of(options) if searched else None
    scores = measure(options.model, metrics=metrics, device=options.device, calibration=text).scores
    _hand_out(options, todo, (scores, windows), data, ends)


def _hand_out(
    options: argparse.Namespace,
    todo: list[Variant],
    given: tuple[LayerScores, Tokens],
    data: dict[str, Any],
    ends: float,
) -> None:
    """Variants to workers, rows to the file; what has begun when the time is over is finished."""
    spawn = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
    threads = max(1, len(usable_cpus()) // options.workers)
    with ProcessPoolExecutor(options.workers, spawn, initializer=_use_threads, initargs=(threads,)) as pool:
        running: dict[Future[dict[str, Any]], str] = {}
        while todo or running:
            while len(running) < options.workers and (variant := _next(options, todo, ends)) is not None:
                todo.remove(variant)
                running[pool.submit(measured, options, variant, *given)] = variant.key
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                add(options.output, data, running.pop(done), done.result())
    if todo:
        print(f"{len(todo)} rows are left for another run", flush=True)


def _next(options: argparse.Namespace, todo: Sequence[Variant], ends: float) -> Variant | None:
    """The first that there is time to begin."""
    left, needed = ends - time.monotonic(), 0.0 if options.search_evaluations else 60.0 * options.search_minutes
    return next((one for one in todo if left > (needed if one.share == "auto" else 0.0)), None)


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def add(out: Path, data: dict[str, Any], key: str, row: dict[str, Any]) -> None:
    """One more row, in the file at once."""
    data["rows"][key] = row
    print(key, {name: value for name, value in row.items() if name != "nll"}, flush=True)
    write_file(out, (json.dumps(data, indent=1) + "\n").encode())


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    action.add_argument("model", type=Path)
    action.add_argument("--text", type=Path, required=True)
    action.add_argument("--calibration", default="demo")
    action.add_argument("--work", type=Path, required=True)
    action.add_argument("--samples", type=int, default=128)
    action.add_argument("--seqlen", type=int, default=2048)
    action.add_argument("--seed", type=int, default=0)
    action.add_argument("--context", type=int, default=2048)
    action.add_argument("--windows", type=int, default=None, help="from the start of the text; default: all of it")
    action.add_argument("--batch", type=int, default=4)
    action.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    action.add_argument("--workers", type=int, default=1, help="variants at a time, on one device")
    action.add_argument("--minutes", type=float, default=float("inf"), help="no row is begun after so many")
    action.add_argument("--search-minutes", type=float, default=3.0, help="of auto, each")
    action.add_argument("--search-evaluations", type=int, help="of auto, in place of minutes")
    action.add_argument("--only", default="", help="a regular expression that a row's name must match")
    action.add_argument("--plan", nargs="*", default=[], help="NAME=allocation.json with bits")
    action.add_argument("--commit", help="of tailcut, where the checkout holds no git history")
    action.add_argument("-o", "--output", type=Path, default=OUTPUT)
    actions.add_parser("list", help="the rows in their order")
    add_table(actions)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = _arguments(words)
    if options.action == "list":
        print("\n".join(variant.key for variant in VARIANTS))
        return
    perform(options, run, shown.render)


if __name__ == "__main__":
    main()
