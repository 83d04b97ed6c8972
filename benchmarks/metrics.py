"""Cost of every metric on a model: seconds and peak memory, each in a process of its own.

    python benchmarks/metrics.py MODEL --calibration TEXT --out benchmarks/results/alloc_metrics.json

The result file keeps the raw seconds of every repetition, by model and metric; measuring some metrics of a model again
replaces their rows and leaves the others. Metrics of the spectrum share the eigenvalues: the first one's "cold" seconds
include them, "warm" is what a metric costs when the cache holds them. The others have only "cold" seconds. Peak memory is that of the measuring process: anonymous pages, without mapped files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from esd import AnonymousMemory, anonymous_bytes  # beside this script

from tailcut import plugins
from tailcut.bench.machine import describe_machine
from tailcut.bench.report import markdown_row
from tailcut.files import write_file

PACKAGE = "tailcut.compress.metrics"


def measure_once(options: argparse.Namespace, name: str, cache: Path) -> dict[str, float]:
    """Seconds of one `measure` call, and the memory it adds; imports and an empty run's memory are not counted."""
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.measure import measure

    text = Calibration(options.calibration, options.samples, options.seqlen)
    memory = AnonymousMemory()
    before = anonymous_bytes()
    memory.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    measure(options.model, metrics=[name], device=options.device, cache=cache, calibration=text)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    memory.stop.set()
    memory.join()
    return {"s": seconds, "cpu_s": cpu, "before_bytes": before, "peak_bytes": memory.peak_bytes}


def in_a_process(options: argparse.Namespace, name: str, cache: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(options.model), "--out", str(options.out), "--one", name]
    command += ["--calibration", options.calibration, "--samples", str(options.samples)]
    command += ["--seqlen", str(options.seqlen), "--device", options.device, "--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    sample: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return sample


def measure_metric(options: argparse.Namespace, name: str, cache: Path, row: dict[str, Any]) -> None:
    """Adds a sample to the `cold` or `warm` ones of a row; a metric that filled the cache is measured again with it."""
    before = len(list(cache.iterdir()))
    sample = in_a_process(options, name, cache)
    grew = len(list(cache.iterdir())) > before
    row["warm" if row["needs"] == "spectrum" and not grew else "cold"].append(sample)
    if grew:
        row["warm"].append(in_a_process(options, name, cache))


def new_row(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """A metric without samples, and what decides its cost beside the model."""
    from tailcut.compress.metrics import need_text

    text = {"samples": options.samples, "seqlen": options.seqlen, "text": Path(options.calibration).name}
    about = {"needs": plugins.load(PACKAGE, name).NEEDS, "load_average": os.getloadavg(), "cold": [], "warm": []}
    return about | ({"calibration": text} if need_text([name]) else {})


def run(options: argparse.Namespace) -> dict[str, Any]:
    """This model's part of the result."""
    from tailcut.checkpoint import Checkpoint
    from tailcut.compress.discovery import find_linears

    checkpoint = Checkpoint(options.model)
    names = options.metrics.split(",") if options.metrics else plugins.names(PACKAGE)
    rows = {name: new_row(options, name) for name in names}
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory() as empty:
            for name, row in rows.items():
                measure_metric(options, name, options.cache or Path(empty), row)
                print(name, json.dumps(summary(row)), flush=True)
    return {
        "parameters": checkpoint.total_parameters(),
        "matrices": len(find_linears(checkpoint)),
        "weights_bytes": sum(path.stat().st_size for path in options.model.glob("*.safetensors")),
        "device": options.device,
        "machine": asdict(describe_machine()),
        "metrics": rows,
    }


def summary(row: dict[str, Any]) -> dict[str, float]:
    """Medians of a metric's samples: seconds cold and warm, and the memory it added, in MB."""
    numbers = {kind: median(sample["s"] for sample in row[kind]) for kind in ("cold", "warm") if row[kind]}
    added = median(sample["peak_bytes"] - sample["before_bytes"] for sample in row["cold"] or row["warm"])
    return {f"{kind}_s": round(value, 3) for kind, value in numbers.items()} | {"added_mb": round(added / 1e6, 1)}


def render(content: dict[str, Any]) -> str:
    """A row a metric and model, the dearest first; what reads the spectrum shares eigenvalues, whose cost the first one has."""
    lines = [markdown_row(["model", "metric", "reads", "seconds", "with spectra cached, s", "memory added, MB"])]
    lines.append("|" + " --- |" * 6)
    notes = []
    for model, data in content["models"].items():
        told = {name: summary(row) for name, row in data["metrics"].items()}
        for name in sorted(told, key=lambda one: -told[one].get("cold_s", told[one].get("warm_s", 0.0))):
            row, needs = told[name], data["metrics"][name]["needs"]
            seconds = [f"{row[kind]:.1f}" if kind in row else "" for kind in ("cold_s", "warm_s")]
            lines.append(markdown_row([model, name, needs, *seconds, f"{row['added_mb']:.0f}"]))
        notes.append(_note(model, data))
    return "\n".join([*lines, "", " ".join(notes)])


def _note(model: str, data: dict[str, Any]) -> str:
    rows, machine = data["metrics"].values(), data["machine"]
    runs = max(len(row[kind]) for row in rows for kind in ("cold", "warm"))
    text = next((row["calibration"] for row in rows if "calibration" in row), None)
    read = f", {text['samples']} x {text['seqlen']} tokens of {text['text']}" if text else ""
    where = f"{machine['cpu']}, {machine['cores']} cores" if data["device"] == "cpu" else data["device"]
    return (
        f"{model}: {data['parameters'] / 1e6:.0f} M parameters, {data['matrices']} matrices{read}; {where}; "
        f"{'one run' if runs == 1 else f'medians of {runs} runs'} each in a process of its own, commit {machine['commit']}."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, help="the JSON result, to which this model is added")
    parser.add_argument("--calibration", default="demo", help="text for the metrics that look at inputs")
    parser.add_argument("--samples", type=int, default=32, help="calibration sequences")
    parser.add_argument("--seqlen", type=int, default=512, help="tokens a calibration sequence")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeat", type=int, default=3, help="processes a metric")
    parser.add_argument("--metrics", help="comma-separated; all of them when left out")
    parser.add_argument("--one", help="measure this metric in this process and print the sample (used by itself)")
    parser.add_argument(
        "--cache", type=Path, help="keep eigenvalues in this existing directory between calls; with --repeat 1"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(measure_once(options, options.one, options.cache)))
        return
    content = json.loads(options.out.read_text()) if options.out.is_file() else {"models": {}}
    result = {"what": "cost of the metrics", "command": "python benchmarks/metrics.py MODEL", "unit": "seconds, bytes"}
    name, made = options.model.name, run(options)
    made["metrics"] = content["models"].get(name, {"metrics": {}})["metrics"] | made["metrics"]
    models = content["models"] | {name: made}
    write_file(options.out, (json.dumps(result | {"models": models}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
