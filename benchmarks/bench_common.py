"""What the benchmarks share: their two actions and arguments, paired losses, and the machine as a result names it."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.bench.machine import describe_machine


def add_model_and_text(action: argparse.ArgumentParser, *, samples: int, seqlen: int, output: Path) -> None:
    """What every script takes that cuts a model on calibration text: where to work and write, and how much text."""
    action.add_argument("model", type=Path)
    action.add_argument("--calibration", type=Path, required=True)
    action.add_argument("--work", type=Path, required=True)
    action.add_argument("--samples", type=int, default=samples)
    action.add_argument("--seqlen", type=int, default=seqlen)
    action.add_argument("--seed", type=int, default=0)
    action.add_argument("--commit", help="of tailcut, where the checkout holds no git history")
    action.add_argument("-o", "--output", type=Path, default=output)


def add_scoring(action: argparse.ArgumentParser, *, context: int, windows: int | None, batch_tokens: int) -> None:
    """What every script takes that scores what it cut, row after row."""
    action.add_argument("--text", type=Path, required=True, help="what is scored")
    action.add_argument("--context", type=int, default=context)
    action.add_argument("--windows", type=int, default=windows)
    action.add_argument("--seconds", type=float, default=float("inf"), help="no new row is begun after so many")
    action.add_argument("--batch-tokens", type=int, default=batch_tokens)


def add_device(action: argparse.ArgumentParser) -> None:
    action.add_argument("--device", default="cpu", choices=("cpu", "cuda"))


def add_table(actions: Any) -> None:  # noqa: ANN401  (argparse names no type for its sub-commands)
    """The action that renders a result file."""
    table = actions.add_parser("table", help="render the Markdown tables of a result file")
    table.add_argument("output", type=Path)


def perform(
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], None],
    render: Callable[[dict[str, Any]], str],
) -> None:
    """Measure if that was asked for, and print what the result file holds."""
    if options.action == "run":
        run(options)
    print(render(json.loads(options.output.read_bytes())))


def calibration_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was drawn from which file."""
    drawn = {name: getattr(options, name) for name in ("samples", "seqlen", "seed")}
    return {"file": options.calibration.name, **drawn}


def mean_and_error(difference: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean of differences [windows] and its standard error over windows; NaN where there is only one."""
    count = difference.size
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def robust_deviation(difference: npt.NDArray[np.float64]) -> float:
    """Standard deviation about zero by the median of what differs, which a few outliers do not move (1.4826: normal law)."""
    return 1.4826 * float(np.median(np.abs(difference)))


def nats_above(losses: Sequence[float], base: Sequence[float], context: int) -> tuple[float, float]:
    """How many nats a token one row's losses lie above another's, and the standard error over the windows.

    Both hold nats a window [windows] of the same windows, of whose `context` tokens all but the first are scored.
    """
    return mean_and_error((np.asarray(losses, np.float64) - np.asarray(base, np.float64)) / (context - 1))


def machine_of(options: argparse.Namespace) -> dict[str, Any]:
    """This machine with its GPU (None: not used) and the commit, which --commit gives where there is no history."""
    gpu = None
    if options.device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    machine = asdict(describe_machine())
    return machine | {"accelerator": gpu, "commit": options.commit or machine["commit"]}
