"""Compression on a GPU at LLaMA-7B's shapes: spectra, SparseGPT and Wanda, with time and peak memory.

    python benchmarks/gpu_compress.py run --blocks 2 -o benchmarks/results/gpu_compress.json
    python benchmarks/gpu_compress.py table benchmarks/results/gpu_compress.json

A model of LLaMA-7B's widths with some of its 32 blocks is written (random weights), and what `tailcut measure` and
`tailcut compress` do is done to it: `measure` with a cold cache, and for each pruner the stream of calibration tokens (128 x
2048 random ones) through every block, cut and stored. Each stage of each block is timed. With fewer than 32 blocks the
whole is worked out from the mean block (the first is left out where there are more: it compiles and allocates), and the
result says that it was. Writing goes to the directory given with --work.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from bench_common import add_table  # beside this script

from tailcut import plugins
from tailcut.allocation import NM, Allocation, LayerPlan, Pattern, Unstructured, parse_nm
from tailcut.bench.gpu_device import describe_gpu, gpu_problem
from tailcut.bench.machine import describe_machine
from tailcut.bench.report import markdown_row
from tailcut.checkpoint import Checkpoint, read_shard, write_shard
from tailcut.compress.blocks import Stream, open_stream
from tailcut.compress.cutting import Method, cut_block
from tailcut.compress.discovery import Linear, linears_of_skeleton
from tailcut.compress.measure import measure
from tailcut.compress.models import ModelSettings, synthetic_llama
from tailcut.compress.pruners import Pruner
from tailcut.compress.resident import Weights, forward_dtype
from tailcut.compress.skeleton import build_skeleton
from tailcut.files import write_file
from tailcut.progress import silent

LLAMA_7B_BLOCKS = 32
OUTPUT = Path("benchmarks/results/gpu_compress.json")


class Clock:
    """Seconds of named stages, the GPU's work included."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.wait()
        began = time.perf_counter()
        yield
        self.wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def make_model(directory: Path, blocks: int, like: str) -> None:
    """A model of these widths with so many blocks."""
    name = f"{like}, {blocks} blocks"
    synthetic_llama.SHAPES[name] = replace(synthetic_llama.SHAPES[like], blocks=blocks)
    directory.mkdir(parents=True)
    synthetic_llama.make(directory, ModelSettings(like=name, dtype="float16", seed=0), silent)


def spectra(model: Path, work: Path, device: str) -> dict[str, Any]:
    """`tailcut measure` with a cold cache: seconds in all, and between the starts of two matrices."""
    starts: list[float] = []
    with tempfile.TemporaryDirectory(dir=work) as cache, peak_memory(device) as peak:
        began = time.perf_counter()
        measured = measure(
            model, device=device, cache=Path(cache), report=lambda *_: starts.append(time.perf_counter())
        )
        seconds = time.perf_counter() - began
    shapes = [list(layer.shape) for layer in measured.scores.layers]
    return {"seconds": seconds, "shapes": shapes, "per_matrix_s": np.diff(starts).tolist(), "peak": peak}


def prune(model: Path, work: Path, name: str, pattern: Pattern, options: argparse.Namespace) -> dict[str, Any]:
    """Every block through one pruner, as `tailcut compress` does it, stage by stage."""
    clock, module = Clock(options.device), cast(Pruner, plugins.load("tailcut.compress.pruners", name))
    checkpoint = Checkpoint(model)
    with peak_memory(options.device) as peak:
        with clock.stage("skeleton"):
            skeleton = build_skeleton(checkpoint)
            linears = linears_of_skeleton(checkpoint, skeleton)
        allocation = Allocation({linear.name: LayerPlan(pattern) for linear in linears}, {})
        weights = Weights(checkpoint, skeleton, options.device, forward_dtype(options.forward))
        vocabulary = int(checkpoint.config["vocab_size"])
        tokens = np.random.default_rng(0).integers(0, vocabulary, (options.samples, options.seqlen), np.int64)
        with clock.stage("open the stream"):
            weights.load_rest()
            stream = open_stream(weights, tokens)
        for index in range(len(skeleton.blocks)):
            mine = [linear for linear in linears if linear.block == index]
            _cut(weights, index, mine, allocation, module, stream, clock, work)
    zeros = _sparsity(work, linears)
    for shard in work.glob("block-*.safetensors"):
        shard.unlink()
    return {"pruner": name, "pattern": str(pattern), "stages_s": clock.seconds, "sparsity": zeros, "peak": peak}


def _cut(
    weights: Weights,
    index: int,
    linears: Sequence[Linear],
    allocation: Allocation,
    module: Pruner,
    stream: Stream,
    clock: Clock,
    work: Path,
) -> None:
    shard = work / f"block-{index}.safetensors"
    with clock.stage("cut a block"):
        tensors = cut_block(weights, index, linears, allocation, Method(module), stream).tensors
    with clock.stage("store a block"):
        write_shard(shard, tensors)
    with clock.stage("advance the stream"), weights.block(index, read_shard(shard)) as block:
        stream.advance(index, block)


def _sparsity(work: Path, linears: Sequence[Linear]) -> float:
    """Share of zeros in what was stored."""
    arrays = [read_shard(work / f"block-{block}.safetensors") for block in sorted({linear.block for linear in linears})]
    found = [shard[linear.tensor] for linear in linears for shard in arrays if linear.tensor in shard]
    return float(sum(int(np.count_nonzero(array == 0)) for array in found) / sum(array.size for array in found))


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, int]]:
    """Fills in what the GPU's allocator held at most, and the process's largest resident set so far."""
    found: dict[str, int] = {}
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield found
    if device == "cuda":
        found |= {"gpu_allocated": torch.cuda.max_memory_allocated(), "gpu_reserved": torch.cuda.max_memory_reserved()}
    found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def whole(entry: dict[str, Any], blocks: int) -> float:
    """Seconds of all 32 blocks: what is done once, and the mean block (without the first) 32 times."""
    if "stages_s" not in entry:
        return float(entry["seconds"]) / blocks * LLAMA_7B_BLOCKS
    stages = entry["stages_s"]
    once = sum(sum(stages[name]) for name in ("skeleton", "open the stream"))
    block = sum(_mean(stages[name]) for name in ("cut a block", "store a block", "advance the stream"))
    return float(once + LLAMA_7B_BLOCKS * block - _mean(stages["advance the stream"]))


def _mean(seconds: Sequence[float]) -> float:
    return float(np.mean(seconds[1:] if len(seconds) > 1 else seconds))


def run(options: argparse.Namespace) -> dict[str, Any]:
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        model = work / "model"
        make_model(model, options.blocks, options.like)
        content: dict[str, Any] = {
            "what": "compression on a GPU at LLaMA-7B's shapes, random weights and tokens",
            "machine": asdict(describe_machine()),
            "gpu": describe_gpu() if options.device == "cuda" else {},
            "like": options.like,
            "blocks": options.blocks,
            "tokens": [options.samples, options.seqlen],
            "forward": options.forward,
        }
        if not options.no_spectra:
            content["spectra"] = spectra(model, work, options.device)
        content["pruners"] = [prune(model, work, *pair, options) for pair in options.pruners]
        return content
    finally:
        shutil.rmtree(work)


def render(content: dict[str, Any]) -> str:
    """One line a job: seconds of the blocks that ran, of all 32, and memory."""
    blocks = content["blocks"]
    told = "measured" if blocks == LLAMA_7B_BLOCKS else f"extrapolated from {blocks} of {LLAMA_7B_BLOCKS} blocks"
    head = ["job", "a block", f"LLaMA-7B, {told}", "GPU memory at most", "of the host"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    if "spectra" in content:
        entry = content["spectra"]
        lines.append(_row("spectra (alpha_peak, cold cache)", entry, entry["seconds"] / blocks, blocks))
    for entry in content["pruners"]:
        block = sum(_mean(entry["stages_s"][name]) for name in ("cut a block", "store a block", "advance the stream"))
        lines.append(_row(f"{entry['pruner']} {entry['pattern']}", entry, block, blocks))
    samples, length = content["tokens"]
    note = (
        f"{content['gpu'].get('name', 'CPU')}, {samples} x {length} random calibration tokens, passes over them in {content.get('forward', 'float32')}, "
        f"commit {content['machine']['commit']}."
    )
    return "\n".join([*lines, "", note])


def _row(job: str, entry: dict[str, Any], block: float, blocks: int) -> str:
    peak = entry["peak"]
    gpu = f"{peak['gpu_allocated'] / 1e9:.1f} GB" if "gpu_allocated" in peak else ""
    return markdown_row(
        [job, f"{block:.1f} s", f"{whole(entry, blocks) / 60:.1f} min", gpu, f"{peak['rss'] / 1e9:.1f} GB"]
    )


def _pruner(text: str) -> tuple[str, Pattern]:
    """sparsegpt=2:4 or wanda=0.5."""
    name, _, pattern = text.partition("=")
    chosen: NM | Unstructured = parse_nm(pattern) if ":" in pattern else Unstructured(float(pattern or 0.5))
    return name, chosen


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    action.add_argument("--blocks", type=int, default=LLAMA_7B_BLOCKS, help="of the 32 to do")
    action.add_argument("--like", default="7b", choices=sorted(synthetic_llama.SHAPES))
    action.add_argument("--samples", type=int, default=128)
    action.add_argument("--seqlen", type=int, default=2048)
    action.add_argument("--pruners", type=lambda text: [_pruner(part) for part in text.split(",")], default=None)
    action.add_argument("--forward", default="float32", choices=("float32", "bfloat16"), help="passes over the tokens")
    action.add_argument("--no-spectra", action="store_true")
    action.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    action.add_argument("--work", type=Path, default=None, help="where the model is written (default: the system's)")
    action.add_argument("-o", "--output", type=Path, default=OUTPUT)
    add_table(actions)
    options = parser.parse_args(arguments)
    if options.action == "run":
        options.pruners = options.pruners or [_pruner("sparsegpt=2:4"), _pruner("wanda=2:4")]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "run":
        if options.device == "cuda" and (problem := gpu_problem()):
            raise SystemExit(f"gpu_compress: {problem}")
        write_file(options.output, (json.dumps(run(options), indent=1) + "\n").encode())
    print(render(json.loads(options.output.read_bytes())))


if __name__ == "__main__":
    main()
