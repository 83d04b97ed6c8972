"""Perplexity after one-shot pruning: {uniform, alpha} x {magnitude, Wanda, SparseGPT} x sparsities, and 2:4.

    python benchmarks/quality.py MODEL --text wiki.test.raw --calibration c4.jsonl --work DIR \
        --out benchmarks/results/alloc_quality.json

Every number is measured here: scores are taken from MODEL, each variant is compressed into DIR, scored on the
whole text (or `--windows N`) at each context, and removed again. Rows already in the output file are kept, so
the script can be stopped and run again. Per-window losses are stored, so that any pair of rows can be compared.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench_common import calibration_of, machine_of  # beside this script

from tailcut import plugins
from tailcut.allocation import Allocation, Budget, LayerScores, parse_nm
from tailcut.bench.machine import describe_machine
from tailcut.checkpoint import Checkpoint
from tailcut.compress.allocators import Settings
from tailcut.compress.calibration import Calibration
from tailcut.compress.measure import measure
from tailcut.compress.perplexity import directory_nll, tokenise
from tailcut.compress.run import compress
from tailcut.files import write_file
from tailcut.windows import perplexity, read_text

PRUNERS = ("magnitude", "wanda", "sparsegpt")
ALLOCATORS = ("uniform", "alpha")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    pruner: str
    allocator: str
    target: str  # "0.5" or "2:4"

    @property
    def key(self) -> str:
        return f"{self.pruner} {self.allocator} {self.target}"

    def allocation(self, scores: LayerScores) -> Allocation:
        pattern = parse_nm(self.target) if ":" in self.target else None
        budget = Budget(pattern.sparsity if pattern else float(self.target), pattern=pattern)
        allocator = plugins.load("tailcut.compress.allocators", self.allocator)
        result: Allocation = allocator.allocate(scores, budget, Settings(metric="alpha_peak"))
        return result


def variants(sparsities: list[str], patterns: list[str]) -> Iterator[Variant]:
    """Cheapest pruner first, so that a run that is stopped early still says something."""
    for pruner in PRUNERS:
        for target in sparsities:
            for allocator in ALLOCATORS:
                yield Variant(pruner, allocator, target)
        for target in patterns:
            yield Variant(pruner, "uniform", target)


class Table:
    """The output file: one row a variant, rewritten after each."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else head | {"rows": {}}

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.data["rows"][key] = row
        write_file(self.path, (json.dumps(self.data, indent=1) + "\n").encode())
        print(key, {name: value for name, value in row.items() if name.startswith("ppl")}, flush=True)


def head_of(what: str, options: argparse.Namespace, tokens: Any) -> dict[str, Any]:  # noqa: ANN401  (an integer array)
    """What a table of perplexities states before its rows; the text's windows are `tokens` [windows, context]."""
    text, machine = read_text(options.text), machine_of(options)
    return {
        "what": what,
        "machine": machine | {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "model": {"name": options.model.resolve().name, "fingerprint": Checkpoint(options.model).fingerprint()},
        "text": {"name": text.name, "sha256": text.sha256, "joining": text.joining},
        "context": options.context,
        "windows": len(tokens),
        "calibration": calibration_of(options),
    }


def score(model: Path, windows: dict[int, Any], device: str, batch_tokens: int) -> dict[str, Any]:
    """Perplexity and per-window losses (nats a window) of one directory at each context."""
    row: dict[str, Any] = {}
    for context, tokens in windows.items():
        nll = directory_nll(model, tokens, device=device, batch=max(1, batch_tokens // context))
        row[f"ppl_{context}"] = perplexity(nll, context - 1)
        row[f"nll_{context}"] = [round(float(value), 3) for value in nll]
    return row


def main() -> None:
    args = _arguments()
    text = read_text(args.text)
    windows = {context: tokenise(args.model, text, context, args.windows)[0] for context in args.contexts}
    calibration = Calibration(str(args.calibration), args.samples, args.seqlen, args.seed)
    head = {
        "what": "perplexity after one-shot pruning, no recovery",
        "machine": asdict(describe_machine())
        | {"accelerator": _accelerator(), "commit": args.commit or describe_machine().commit},
        "model": Checkpoint(args.model).fingerprint(),
        "text": {"name": text.name, "sha256": text.sha256, "joining": text.joining},
        "tokens_scored": {str(context): int(tokens.shape[0] * (context - 1)) for context, tokens in windows.items()},
        "calibration": calibration_of(args),
    }
    table = Table(args.out, head)
    if "dense" not in table.data["rows"]:
        table.add("dense", score(args.model, windows, args.device, args.batch_tokens))
    began = time.perf_counter()
    scores = measure(args.model, metrics=("alpha_mid", "alpha_peak"), device=args.device).scores
    print(f"measured in {time.perf_counter() - began:.1f} s", flush=True)
    for variant in variants(args.sparsities, args.patterns):
        if variant.key in table.data["rows"] or variant.pruner not in args.pruners:
            continue
        out = args.work / "variant"
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        manifest = compress(
            args.model,
            variant.allocation(scores),
            out,
            pruner=variant.pruner,
            calibration=calibration,
            device=args.device,
        )
        facts = {"sparsity": manifest.sparsity, "compress_s": time.perf_counter() - began}
        table.add(variant.key, facts | score(out, windows, args.device, args.batch_tokens))
        shutil.rmtree(out)


def _accelerator() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--windows", type=int, default=None)
    parser.add_argument("--sparsities", nargs="+", default=["0.5", "0.6", "0.7"])
    parser.add_argument("--patterns", nargs="*", default=["2:4"])
    parser.add_argument("--pruners", nargs="+", default=list(PRUNERS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--commit", help="of tailcut, where the checkout holds no git history")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    return parser.parse_args()


if __name__ == "__main__":
    main()
