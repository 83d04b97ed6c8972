"""Packages for decode timings: MODEL cut to a sparsity whose layer profile is a published model's.

    python benchmarks/speed_packages.py MODEL --out DIR                                     # the dense side
    python benchmarks/speed_packages.py MODEL --out DIR --sparsity 0.8 --profile alpha.csv  # a sparse one

Random weights have no trained spectrum, so the alphas come from a CSV of a real model (one line a block, one value a
matrix; `#` starts a comment): its block means are interpolated linearly over depth and given to the alpha allocator.
Magnitude pruning then realises exactly that plan. Writes the bitmask package DIR/dense or DIR/s80 and its static
variant beside it; parity with torch is not checked here (the benchmark compares the engines' logits itself).
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from tailcut import __version__
from tailcut.allocation import Budget, LayerScore, LayerScores
from tailcut.checkpoint import Checkpoint
from tailcut.compress.allocators import Settings, alpha
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.run import compress
from tailcut.export.run import export
from tailcut.export.static import export_deepsparse
from tailcut.progress import console


def profile_scores(model: Path, profile: Path) -> LayerScores:
    """Every matrix of `model` scored with the profile's block mean at its relative depth."""
    means = np.loadtxt(profile, delimiter=",", comments="#").mean(axis=1)
    checkpoint = Checkpoint(model)
    linears = find_linears(checkpoint)
    last = max(linear.block for linear in linears)
    depths = [linear.block / max(1, last) for linear in linears]
    values = np.interp(depths, np.linspace(0, 1, len(means)), means)
    layers = tuple(
        LayerScore(linear.name, linear.block, linear.shape, {"alpha_peak": float(value)})
        for linear, value in zip(linears, values, strict=True)
    )
    source = {"profile": profile.name, "tool": f"tailcut {__version__}"}
    return LayerScores(checkpoint.fingerprint(), layers, checkpoint.total_parameters(), source)


def main() -> None:
    args = _arguments()
    with console() as report:
        if args.sparsity is None:
            name, model = "dense", args.model
        else:
            name, model = f"s{round(args.sparsity * 100)}", args.out / "cut"
            shutil.rmtree(model, ignore_errors=True)
            scores = profile_scores(args.model, args.profile)
            plan = alpha.allocate(scores, Budget(args.sparsity), Settings(metric="alpha_peak", tau=args.tau))
            compress(args.model, plan, model, pruner="magnitude", calibration=Calibration(), report=report)
        export(model, args.out / name, check=False, report=report)
        static = args.out / f"{name}-deepsparse"
        export_deepsparse(model, static, context=args.context, prompt=args.prompt, check=False, report=report)
    if args.sparsity is not None:
        shutil.rmtree(model)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsity", type=float)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--tau", type=float)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=64)
    args = parser.parse_args()
    if args.sparsity is not None and args.profile is None:
        parser.error("--sparsity needs --profile")
    return args


if __name__ == "__main__":
    main()
