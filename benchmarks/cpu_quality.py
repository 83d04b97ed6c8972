"""What a package costs in quality as it is deployed: perplexity of the same weights in torch and through the engines.

    python benchmarks/cpu_quality.py run --text wiki.test.raw --windows 64 -o benchmarks/results/cpu_quality.json \
        --model dense=models/smollm2-135m --package "dense int8"=dense.int8.pkg ...
    python benchmarks/cpu_quality.py table benchmarks/results/cpu_quality.json

Each package is scored twice: by ONNX Runtime without tailcut's kernels (float32 arithmetic on the stored weights) and by
the kernels (int8 activations where the weights are int8 or int4). The first windows of the text are used, the same for all;
differences are paired over windows. Rows already in the file are kept. Per-window losses are stored.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import add_table, nats_above  # beside this script

from tailcut.bench.machine import describe_machine
from tailcut.bench.quality import package_nll
from tailcut.bench.quality import tokenise as package_tokenise
from tailcut.bench.report import markdown_row
from tailcut.compress.perplexity import directory_nll, tokenise
from tailcut.files import write_file
from tailcut.progress import console
from tailcut.results import Workload
from tailcut.windows import perplexity, read_text

ENGINES = ("onnxruntime", "tailcut")


def run(options: argparse.Namespace) -> None:
    content = read(options.output)
    text = read_text(options.text)
    content |= {"text": text.name, "text_sha256": text.sha256, "context": options.context, "windows": options.windows}
    with console() as report:
        for label, path in pairs(options.model):
            if f"{label} torch" not in content["rows"]:
                tokens, _ = tokenise(path, text, options.context, options.windows)
                keep(options, content, f"{label} torch", directory_nll(path, tokens, report=report))
        for label, path in pairs(options.package):
            tokens, _ = package_tokenise(path, text, options.context, options.windows)
            work = Workload(
                prompt_tokens=options.context, new_tokens=1, context=options.context + 1, threads=options.threads
            )
            for engine in ENGINES:
                if f"{label} {engine}" not in content["rows"]:
                    found = package_nll(path, tokens, work, report, engine_name=engine)
                    keep(options, content, f"{label} {engine}", found)


def pairs(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    return [(label, Path(path)) for label, _, path in (argument.partition("=") for argument in arguments)]


def keep(options: argparse.Namespace, content: dict[str, Any], key: str, nll: Any) -> None:  # noqa: ANN401 numpy
    content["rows"][key] = np.asarray(nll).tolist()
    content["machine"] = asdict(describe_machine())
    write_file(options.output, (json.dumps(content, indent=1, default=str) + "\n").encode())


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.exists() else {"rows": {}}


def render(content: dict[str, Any]) -> str:
    """Perplexity of each label in torch's arithmetic and through the kernels, and what the kernels' rounding costs."""
    rows, scored = content["rows"], content["context"] - 1
    head = ["package", "torch", "ONNX Runtime, stored weights", "tailcut's kernels", "kernels over stored weights"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for label in dict.fromkeys(key.rsplit(" ", 1)[0] for key in rows):
        cells = [_value(rows.get(f"{label} {name}"), scored) for name in ("torch", *ENGINES)]
        lines.append(markdown_row([label, *cells, _cost(rows, label, content["context"])]))
    note = (
        f"First {content['windows']} windows of {content['context']} tokens of {content['text']}; the last column is the "
        "paired difference of the loss as a ratio of perplexities, with its standard error over windows."
    )
    return "\n".join([*lines, "", note])


def _value(nll: list[float] | None, scored: int) -> str:
    return "" if nll is None else f"{perplexity(np.asarray(nll), scored):.3f}"


def _cost(rows: dict[str, list[float]], label: str, context: int) -> str:
    if not all(f"{label} {engine}" in rows for engine in ENGINES):
        return ""
    plain, kernels = (rows[f"{label} {engine}"] for engine in ENGINES)
    mean, error = nats_above(kernels, plain, context)
    return f"{100 * np.expm1(mean):+.2f} % (SE {100 * error:.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    measure = actions.add_parser("run", help="measure")
    measure.add_argument("--model", action="append", default=[], metavar="LABEL=DIR")
    measure.add_argument("--package", action="append", default=[], metavar="LABEL=PACKAGE")
    measure.add_argument("--text", type=Path, required=True)
    measure.add_argument("--context", type=int, default=512)
    measure.add_argument("--windows", type=int, default=64)
    measure.add_argument("--threads", type=int, default=2)
    measure.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/cpu_quality.json"))
    add_table(actions)
    options = parser.parse_args(arguments)
    if options.action == "run":
        run(options)
    print(render(read(options.output)))


if __name__ == "__main__":
    main()
