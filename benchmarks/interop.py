"""Every foreign client on what tailcut writes for it: does it load, say the same, and run a sparse kernel?

    python benchmarks/interop.py run MODEL RESULT --out DIR --calibration text.jsonl   # go on where a run was broken off
    python benchmarks/interop.py table RESULT                                          # the tables of docs/interop.md

MODEL is cut once in every way (interop_models.py); each target's layouts are exported from those directories, unchecked
(the tests check exports). The reference is plain ONNX Runtime in this process on the bitmask package, without tailcut's kernels;
where activations are rounded too, transformers with compressed-tensors on the same directory.
A client gets the prompt's ids and gives 64 greedy tokens; where they differ, the result holds the first place and how
far apart the two tokens' logits are in the reference. Tokens a second are of one run on whatever machine this is: indicative.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import interop_models  # beside this script
import interop_table
import numpy as np

from tailcut.bench import clients
from tailcut.bench.machine import describe_machine
from tailcut.bench.worker import Worker
from tailcut.compress.calibration import Calibration
from tailcut.compress.quantised_dense import write_compressed_tensors
from tailcut.errors import TailcutError
from tailcut.export import targets
from tailcut.export.run import export
from tailcut.export.static import export_deepsparse
from tailcut.files import write_file
from tailcut.kernels.decoder import Decoder
from tailcut.kernels.text import tokenizer_of
from tailcut.progress import Reporter, console

PROMPT = "The history of science is the story of how people learned to ask"
COUNT = 64
CONTEXT, PREFILL = 256, 64  # of the static variant
HF_LAYOUT, PACKED = "safetensors", clients.PACKED
W8A8 = interop_models.W8A8
QUANTISED = ("int8", "int4", W8A8)
ROUNDING = "compressed-tensors"  # the client whose tokens W8A8 is compared with: it rounds activations, in float32


def run(options: argparse.Namespace) -> None:
    """Measure what is not in the result yet, one row at a time."""
    result = read(options.result) or {"rows": [], "references": {}}
    with console() as report:
        calibration = Calibration(options.calibration, 16, 512)
        interop_models.make(options.model, options.out, calibration, report, tuple(options.models))
        ids = tokenizer_of(options.model).encode(PROMPT).ids
        machine = describe_machine()
        result |= {"machine": asdict(machine), "prompt": PROMPT, "prompt_ids": ids, "count": COUNT}
        result |= {
            "model": options.model.name,
            "calibration": Path(options.calibration).name,
            "threads": options.threads,
        }
        for model in options.models:
            if model not in result["references"]:
                result["references"][model] = reference(options, model, ids, report)
                save(result, options.result)
        for name, model, layout in plan(options):
            target = clients.load(name).TARGET
            if options.prepare:
                written(options, target, model, layout, report)
                continue
            if options.prepared and not directory_of(options, target, model, layout).is_dir():
                continue
            done = {(row["client"], row["model"], row["layout"]) for row in result["rows"]}
            if (name, model, layout) not in done:
                report("interop", len(done), 0, f"{name} {model} {layout}")
                result["rows"].append(row_of(options, name, model, layout, ids, result["references"][model], report))
                save(result, options.result)


def plan(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Client, model and layout of every row, the clients in the order asked for."""
    return [
        (name, model, layout)
        for name in options.clients
        for model in options.models
        for layout in layouts(clients.load(name).TARGET)
        if (model not in ("int4", W8A8) or layout == PACKED) and (layout != PACKED or model in QUANTISED)
        if (name, model) != (ROUNDING, W8A8)
    ]


def layouts(target: str) -> tuple[str, ...]:
    """What a client's target is written as."""
    if target == clients.HF:
        return (HF_LAYOUT,)
    return (PACKED,) if target == PACKED else tuple(targets.load(target).LAYOUTS)


def row_of(
    options: argparse.Namespace,
    name: str,
    model: str,
    layout: str,
    ids: list[int],
    wanted: Mapping[str, Any],
    report: Reporter,
) -> dict[str, Any]:
    """One client on one directory; a failure is a row with the client's own message."""
    client = clients.load(name)
    row: dict[str, Any] = {"client": name, "target": client.TARGET, "model": model, "layout": layout}
    row |= {"licence": client.LICENCE, "loads": False, "equal": None, "message": ""}
    if reason := client.available():
        return row | {"message": reason, "ran": False}
    try:
        directory = written(options, client.TARGET, model, layout, report)
        row["bytes"] = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
        began = time.monotonic()
        found = clients.greedy(name, directory, ids, COUNT, threads=options.threads, timeout_s=options.timeout)
    except TailcutError as error:
        return row | {"message": str(error), "ran": True}
    row |= {"ran": True, "loads": True, "seconds": time.monotonic() - began, **dict(found)}
    row["tokens_per_s"] = (COUNT - 1) / float(found["decode_s"]) if found["decode_s"] else None
    return row | compared(list(found["tokens"]), wanted)


def compared(tokens: list[int], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Whether all tokens are the reference's; else the first that is not and the two tokens' distance there."""
    expected = list(wanted["tokens"])
    first = next((place for place, pair in enumerate(zip(tokens, expected, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        return {"equal": len(tokens) == len(expected)}
    runner_up = tokens[first] == wanted["seconds"][first]
    return {"equal": False, "first_difference": first, "margin": wanted["margins"][first], "runner_up": runner_up}


def reference(options: argparse.Namespace, model: str, ids: list[int], report: Reporter) -> dict[str, Any]:
    """Greedy tokens of plain ONNX Runtime, and at each the runner-up and how much less its logit is."""
    if model == W8A8:
        return rounding_reference(written(options, PACKED, model, PACKED, report), ids, options)
    package = written(options, "onnxruntime", model, "bitmask", report)
    decoder = Decoder(package, options.threads, kernels="off")
    logits = decoder.prefill(np.array([ids]), last_only=True)[0, 0]
    found: dict[str, Any] = {"tokens": [], "seconds": [], "margins": []}
    while True:
        second, best = (int(token) for token in np.argsort(logits)[-2:])
        found["tokens"].append(best)
        found["seconds"].append(second)
        found["margins"].append(float(logits[best] - logits[second]))
        if len(found["tokens"]) == COUNT:
            return found
        logits = decoder.step(np.array([best]))[0]


def rounding_reference(directory: Path, ids: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """The same of the client that rounds activations in float32; the logits of all its tokens in one more pass."""
    launch = clients.load(ROUNDING).launch(directory, options.threads)
    with Worker(launch, timeout_s=options.timeout) as worker:
        worker.ask("open", **dict(launch.settings))
        tokens = list(worker.ask("greedy", prompt=ids, count=COUNT)[0]["tokens"])
        logits = worker.ask("logits", {"tokens": np.array([ids + tokens[:-1]])})[1]["logits"][0, len(ids) - 1 :]
    order = np.argsort(logits, axis=1)[:, -2:]
    # a pass over all tokens may round another activation than the steps did: the runner-up is whatever is not the token
    seconds = [int(second if best == token else best) for token, (second, best) in zip(tokens, order, strict=True)]
    margins = [float(row[token] - row[second]) for row, token, second in zip(logits, tokens, seconds, strict=True)]
    return {"tokens": tokens, "seconds": seconds, "margins": margins}


def written(options: argparse.Namespace, target: str, model: str, layout: str, report: Reporter) -> Path:
    """The directory of a target, made when it is not there."""
    source = interop_models.model_of(model, options.model, options.out)
    out = directory_of(options, target, model, layout)
    if out.is_dir():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    if target == PACKED:
        write_compressed_tensors(source, out, activations="int8" if model == W8A8 else "float", report=report)
    elif target == "deepsparse":
        export_deepsparse(source, out, context=CONTEXT, prompt=PREFILL, engine_cache=True, check=False, report=report)
    else:
        export(
            source, out, target=target, layout="bitmask" if layout == "bitmask" else "dense", check=False, report=report
        )
    return out


def directory_of(options: argparse.Namespace, target: str, model: str, layout: str) -> Path:
    """Where it lies, or will."""
    if target == clients.HF:
        return interop_models.model_of(model, options.model, options.out)
    out: Path = options.out / "packages" / f"{model}-{target}-{layout}"
    return out


def read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_bytes()) if path.is_file() else None


def save(result: Mapping[str, Any], path: Path) -> None:
    write_file(path, (json.dumps(result, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    measure = actions.add_parser("run", help="measure every client that is installed")
    measure.add_argument("model", type=Path)
    measure.add_argument("result", type=Path)
    measure.add_argument("--out", type=Path, required=True, help="where models and packages go")
    measure.add_argument("--calibration", default="demo")
    measure.add_argument("--clients", nargs="+", default=list(clients.names()))
    measure.add_argument("--models", nargs="+", default=list(interop_models.MODELS), choices=interop_models.MODELS)
    measure.add_argument("--threads", type=int, default=2)
    measure.add_argument("--timeout", type=float, default=600.0, help="seconds for one answer of a client")
    measure.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    measure.add_argument(
        "--prepare", action="store_true", help="write the packages only, so that rows can be quiet later"
    )
    measure.add_argument("--prepared", action="store_true", help="leave out rows whose package is not there yet")
    table = actions.add_parser("table", help="render a result")
    table.add_argument("result", type=Path)
    options = parser.parse_args()
    if options.action == "run":
        if options.fresh:
            options.result.unlink(missing_ok=True)
            shutil.rmtree(options.out / "packages", ignore_errors=True)
        run(options)
    print(interop_table.render(json.loads(options.result.read_bytes())))


if __name__ == "__main__":
    main()
