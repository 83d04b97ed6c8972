"""What the benchmarks share: their two actions, and the machine as a result names it."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tailcut.bench.machine import describe_machine


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


def machine_of(options: argparse.Namespace) -> dict[str, Any]:
    """This machine with its GPU (None: not used) and the commit, which --commit gives where there is no history."""
    gpu = None
    if options.device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    machine = asdict(describe_machine())
    return machine | {"accelerator": gpu, "commit": options.commit or machine["commit"]}
