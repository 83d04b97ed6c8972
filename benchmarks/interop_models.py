"""The models of the interoperability table: one model dense, half cut, 2:4 and quantised, the same for every client.

    python benchmarks/interop_models.py MODEL --out DIR --calibration text.jsonl

Writes DIR/models/s50 and DIR/models/24 (Wanda, every matrix alike), DIR/models/int8 (a scale a row) and DIR/models/int4 (GPTQ).
What is there already is kept. The dense one is MODEL itself; `w8a8` is int8, for clients that round activations as well.
"""

import argparse
from pathlib import Path

from tailcut.allocation import NM, Allocation, Dense, LayerPlan, Unstructured
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.run import compress
from tailcut.manifest import MANIFEST_NAME
from tailcut.progress import Reporter, console

# name -> what every matrix of the blocks loses, and the quantiser where it has bits
CUTS = {
    "s50": (LayerPlan(Unstructured(0.5)), "gptq"),
    "24": (LayerPlan(NM(2, 4)), "gptq"),
    "int8": (LayerPlan(Dense(), 8), "rtn"),
    "int4": (LayerPlan(Dense(), 4), "gptq"),
}
W8A8 = "w8a8"
MODELS = ("dense", *CUTS, W8A8)


def model_of(name: str, model: Path, out: Path) -> Path:
    """Where one of the models lies."""
    return model if name == "dense" else out / "models" / ("int8" if name == W8A8 else name)


def make(model: Path, out: Path, calibration: Calibration, report: Reporter, only: tuple[str, ...] = MODELS) -> None:
    """Cut MODEL in every way that is not there yet."""
    (out / "models").mkdir(parents=True, exist_ok=True)
    names = [linear.name for linear in find_linears(Checkpoint(model))]
    wanted = {"int8" if name == W8A8 else name for name in only}
    for name, (plan, quantiser) in CUTS.items():
        target = model_of(name, model, out)
        if name in wanted and not (target / MANIFEST_NAME).is_file():
            allocation = Allocation(dict.fromkeys(names, plan), {"allocator": "uniform"})
            compress(model, allocation, target, quantiser=quantiser, calibration=calibration, report=report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--calibration", default="demo")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seqlen", type=int, default=512)
    options = parser.parse_args()
    with console() as report:
        make(options.model, options.out, Calibration(options.calibration, options.samples, options.seqlen), report)


if __name__ == "__main__":
    main()
