"""How much faster decode gets where whole units are cut: packages of each shape beside the dense one, paired.

    python benchmarks/structured_speed.py packages MODEL --work DIR   # not timed
    python benchmarks/structured_speed.py run MODEL --work DIR   # timed
    python benchmarks/structured_speed.py table benchmarks/results/structured_speed.json

The speed depends on how many units go and where, not on which: they are chosen by magnitude, which needs no text. The
quality of other choices is what structured.py measures. `run` goes on after the rows that the output holds.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench_common import add_table, machine_of, perform  # beside this script
from structured import RATIOS, Variant, asked

from tailcut import codec
from tailcut.bench.report import markdown_row
from tailcut.bench.run import bench
from tailcut.bench.tables import interval
from tailcut.checkpoint import Checkpoint
from tailcut.compress.structured_run import cut_structured
from tailcut.export.run import export
from tailcut.files import write_file
from tailcut.progress import console
from tailcut.results import BenchResult, Workload

OUTPUT: Final = Path("benchmarks/results/structured_speed.json")
ENGINES: Final = ("onnxruntime", "tailcut")
SHAPES: Final = (
    Variant("heads and MLP channels, one shape", "magnitude", refit=False),
    Variant("heads and MLP channels, alpha ratios", "magnitude", refit=False, alpha=True),
    Variant("whole blocks", "magnitude", refit=False, blocks=True),
)


def make_packages(options: argparse.Namespace) -> None:
    """The dense package and one of every shape, where they are not there yet."""
    options.work.mkdir(parents=True, exist_ok=True)
    with console() as report:
        if not (options.work / "dense").is_dir():
            export(options.model, options.work / "dense", report=report)
        for place, (shape, ratio) in enumerate((shape, ratio) for ratio in options.ratios for shape in SHAPES):
            cut, package = options.work / f"cut{place}", options.work / f"package{place}"
            if not package.is_dir():
                manifest = cut_structured(options.model, cut, asked(options, shape, ratio))
                export(cut, package, report=report)
                gone = {"ratio_removed": manifest.details["ratio_removed"], "parameters": manifest.total_parameters}
                about = {"name": shape.name, "ratio": ratio, "package": package.name} | gone
                write_file(options.work / f"{package.name}.json", json.dumps(about).encode())


def run(options: argparse.Namespace) -> None:
    """A paired bench of every package with every engine."""
    output: Path = options.output
    workload = Workload(prompt_tokens=64, context=256, new_tokens=64, threads=options.threads, blocks=options.blocks)
    settings = {"model": options.model.resolve().name, "workload": asdict(workload)}
    data: dict[str, Any] = {"what": "decode speedup of structurally cut models", **settings}
    data |= {
        "dense_parameters": Checkpoint(options.model).total_parameters(),
        "machine": machine_of(options),
        "rows": {},
    }
    if output.is_file():
        found = json.loads(output.read_bytes())
        if any(found[name] != value for name, value in settings.items()):
            raise SystemExit(f"{output}: holds rows of another model or workload; give another -o, or remove it")
        data["rows"] = found["rows"]
    with console() as report:
        for file in sorted(options.work.glob("package*.json")):
            about = json.loads(file.read_bytes())
            key = f"{about['name']} at {about['ratio']:g}"
            if key not in data["rows"]:
                pair = options.work / "dense", options.work / about.pop("package")
                result = bench(*pair, engines=ENGINES, workload=workload, report=report)
                data["rows"][key] = about | {"result": json.loads(codec.to_json(result))}
                write_file(output, (json.dumps(data, separators=(",", ":")) + "\n").encode())


def render(data: dict[str, Any]) -> str:
    """A row a shape and ratio: size on disk and speedups of both phases, by engine."""
    lines = [markdown_row(["what goes", "weights gone", "parameters", "package, MB", *_heads()])]
    lines.append("|" + " --- |" * (4 + len(_heads())))
    for key, row in sorted(data["rows"].items(), key=lambda item: item[1]["ratio"]):
        result = codec.from_json(BenchResult, json.dumps(row["result"]), key)
        engines = {engine.engine: engine for engine in result.engines}
        told = [
            interval(ratio) if ratio is not None else engines[name].reason
            for name in ENGINES
            for ratio in (engines[name].decode_speedup, engines[name].prefill_speedup)
        ]
        size = f"{result.sparse.bytes_on_disk / 1e6:.0f}"
        removed = f"{row['ratio_removed']:.1%}"
        lines.append(markdown_row([row["name"], removed, f"{row['parameters'] / 1e6:.1f} M", size, *told]))
    return "\n".join([*lines, "", _note(data)])


def _heads() -> list[str]:
    return [f"{name} {phase}" for name in ENGINES for phase in ("decode", "prefill")]


def _note(data: dict[str, Any]) -> str:
    work, machine = data["workload"], data["machine"]
    return (
        f"{data['model']}, dense {data['dense_parameters'] / 1e6:.1f} M parameters, float32. Times as fast as dense, in brackets the "
        f"95 % interval; {work['prompt_tokens']} tokens of prompt, {work['new_tokens']} new ones, {work['threads']} threads, "
        f"{work['blocks']} paired blocks. {machine['cpu']}, commit {machine['commit']}."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    add_table(actions)
    for name, told in (("packages", "cut and export"), ("run", "time every package beside the dense one")):
        action = actions.add_parser(name, help=told)
        action.add_argument("model", type=Path, help="the dense model's directory")
        action.add_argument("--work", type=Path, required=True, help="where packages lie")
        action.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
        action.add_argument("--multiple", type=int, default=64)
        action.add_argument("--threads", type=int, default=2)
        action.add_argument("--blocks", type=int, default=12)
        action.add_argument("--commit", help="where there is no history")
        action.add_argument("-o", "--output", type=Path, default=OUTPUT)
        action.set_defaults(calibration="demo", samples=1, seqlen=64, device="cpu", forward="float32")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "packages":
        make_packages(options)
        return
    perform(options, run, render)


if __name__ == "__main__":
    main()
