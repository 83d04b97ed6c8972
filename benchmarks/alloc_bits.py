"""Perplexity of uniform bits: round to nearest beside GPTQ, and half the weights cut before or while they are rounded.

    python benchmarks/alloc_bits.py MODEL --text wiki.test.raw --work DIR --out benchmarks/results/alloc_bits.json

Each variant gives every matrix of the blocks the same plan, is compressed into DIR, scored on `--windows` windows of
`--context` tokens and removed again; calibration is the packaged text unless another is named. Rows already in the output
are kept and an interrupted compression goes on, so the script can be stopped and run again. `bits_stored` counts what a
package stores of a weight in its smaller layout: values, mask and scales (3 and 2 bits take the place of 4).
"""

import argparse
import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tailcut.allocation import Allocation, Bits, Dense, LayerPlan, Unstructured
from tailcut.bench.machine import commit, describe_machine
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.perplexity import directory_nll, tokenise
from tailcut.compress.run import compress
from tailcut.files import write_file
from tailcut.manifest import Manifest
from tailcut.quantised import groups
from tailcut.windows import Tokens, read_text


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table."""

    bits: Bits | None
    quantiser: str = "gptq"
    sparsity: float = 0.0
    pruner: str = "sparsegpt"
    clip: bool = True

    @property
    def key(self) -> str:
        cut = f"{self.pruner} {self.sparsity:g}" if self.sparsity else ""
        rounded = f"{self.quantiser} {self.bits}" + ("" if self.clip else " unclipped") if self.bits else ""
        return " + ".join(part for part in (cut, rounded) if part)

    def allocation(self, names: list[str]) -> Allocation:
        pattern = Unstructured(self.sparsity) if self.sparsity else Dense()
        return Allocation(dict.fromkeys(names, LayerPlan(pattern, self.bits)), {"allocator": "uniform"})


# what the issue asks first, so that a run that is stopped early still says something
VARIANTS: Final = (
    Variant(4, "rtn"),
    Variant(4, "gptq"),
    Variant(3, "gptq"),
    Variant(4, "joint", 0.5),
    Variant(4, "gptq", 0.5),
    Variant(4, "rtn", clip=False),
    Variant(None, sparsity=0.5),
    Variant(8, "joint", 0.5),
    Variant(3, "rtn"),
    Variant(8, "rtn"),
    Variant(8, "gptq"),
    Variant(4, "rtn", 0.5),
    Variant(8, "gptq", 0.5),
    Variant(8, "rtn", 0.5),
    Variant(4, "gptq", clip=False),
    Variant(3, "rtn", clip=False),
    Variant(3, "gptq", clip=False),
    Variant(3, "joint", 0.5),
    Variant(3, "gptq", 0.5),
    Variant(2, "gptq"),
)


def stored_bits(manifest: Manifest) -> float:
    """Bits a weight of a package's matrices, zeros as the manifest counts them; unquantised ones at bfloat16."""
    total = 0.0
    for layer in manifest.layers.values():
        rows, columns = layer.shape
        value = {None: 16, 8: 8}.get(layer.plan.bits, 4)
        scales = {None: 0, 8: 32 * rows}.get(layer.plan.bits, 32 * rows * groups(columns))
        whole = rows * columns
        total += min(value * whole, value * (whole - layer.zeros) + 8 * rows * -(-columns // 8)) + scales
    return total / manifest.prunable_parameters


def score(model: Path, windows: Tokens, batch: int) -> dict[str, Any]:
    nll = directory_nll(model, windows, device="cpu", batch=batch)
    return {
        "ppl": float(np.exp(nll.sum() / (len(nll) * (windows.shape[1] - 1)))),
        "nll": [round(float(value), 3) for value in nll],
    }


def measured(args: argparse.Namespace, variant: Variant, names: list[str], windows: Tokens) -> dict[str, Any]:
    """One variant made, scored and removed."""
    out = args.work / variant.key.replace(" ", "-")
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    manifest = compress(
        args.model,
        variant.allocation(names),
        out,
        pruner=variant.pruner,
        quantiser=variant.quantiser,
        clip=variant.clip,
        calibration=Calibration(args.calibration, args.samples, args.seqlen, args.seed),
        device="cpu",
    )
    seconds = time.perf_counter() - began
    errors = [layer.output_error for layer in manifest.layers.values() if layer.output_error is not None]
    row = {"zeros": manifest.sparsity, "bits_stored": stored_bits(manifest), "compress_s": seconds}
    row |= {"output_error_median": float(np.median(errors))} if errors else {}
    row |= score(out, windows, args.batch)
    shutil.rmtree(out)
    return row


def main() -> None:
    args = _arguments()
    text = read_text(args.text)
    windows, _ = tokenise(args.model, text, args.context, args.windows)
    names = [linear.name for linear in find_linears(Checkpoint(args.model))]
    head: dict[str, Any] = {
        "what": "perplexity at uniform bits, no recovery",
        "machine": asdict(describe_machine()) | {"commit": commit(Path())},
        "model": Checkpoint(args.model).fingerprint(),
        "text": {"name": text.name, "sha256": text.sha256, "joining": text.joining},
        "context": args.context,
        "windows": len(windows),
        "calibration": {name: getattr(args, name) for name in ("samples", "seqlen", "seed")}
        | {"source": Path(args.calibration).name},
        "rows": {},
    }
    data = json.loads(args.out.read_bytes()) if args.out.is_file() else head
    todo = {variant.key: variant for variant in VARIANTS if variant.key not in data["rows"]}
    if "dense" not in data["rows"]:
        add(args.out, data, "dense", score(args.model, windows, args.batch))
    for key, variant in todo.items():
        add(args.out, data, key, measured(args, variant, names, windows))


def add(out: Path, data: dict[str, Any], key: str, row: dict[str, Any]) -> None:
    """One more row, in the file at once."""
    data["rows"][key] = row
    print(key, {name: value for name, value in row.items() if name != "nll"}, flush=True)
    write_file(out, (json.dumps(data, indent=1) + "\n").encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()
