"""A real model that was cut to 2:4, on a GPU: the 2:4 kernels beside cuBLAS on the same weights, zeros written out.

    tailcut compress models/smollm2-135m --allocation 2of4.json --pruner sparsegpt --device cuda -o cut
    python benchmarks/gpu_quality.py run cut --text wiki.test.raw -o benchmarks/results/gpu_quality.json
    python benchmarks/gpu_quality.py table benchmarks/results/gpu_quality.json

Two comparisons, both through the decode loop that is timed elsewhere. Greedy: prompts are the beginnings of windows of the
text; the tokens of both loops are compared, and where they part the gap between dense's two best logits there is kept.
Perplexity: every token of a window is fed in turn, one row at a time, so that the kernels for one row are judged, and the
loss of each window is kept. float32 loops of the dense weights tell what bfloat16 itself costs.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from bench_common import add_table, nats_above  # beside this script
from torch import Tensor
from torch.nn.functional import cross_entropy

from tailcut.bench.gpu_device import describe_gpu, gpu_problem
from tailcut.bench.machine import describe_machine
from tailcut.bench.report import markdown_row
from tailcut.checkpoint import Checkpoint
from tailcut.compress.perplexity import tokenise
from tailcut.errors import EXIT_ENVIRONMENT
from tailcut.files import write_file
from tailcut.kernels.gpu.decode import Decoder
from tailcut.kernels.gpu.model import Model, assemble, assemble_two_four
from tailcut.kernels.gpu.weights import Weights, read_weights
from tailcut.manifest import read_manifest
from tailcut.windows import perplexity, read_text

OUTPUT: Final = Path("benchmarks/results/gpu_quality.json")
DENSE: Final = "dense bf16"
EXACT: Final = "dense float32"
CONTENDERS: Final = (DENSE, "2:4 bf16", "2:4 int8", "2:4 int4", EXACT)
_BITS: Final = {"2:4 bf16": 16, "2:4 int8": 8, "2:4 int4": 4}


def model_of(name: str, directory: Path, device: str) -> Model:
    """The model in `directory` as one contender runs it."""
    dtype = torch.float32 if name == EXACT else torch.bfloat16
    weights: Weights = read_weights(directory, device, dtype)
    with torch.inference_mode():
        return assemble_two_four(weights, _BITS[name]) if name in _BITS else assemble(weights)


def run(options: argparse.Namespace) -> dict[str, Any]:
    directory: Path = options.model
    text = read_text(options.text)
    windows, _ = tokenise(directory, text, options.context, max(options.windows, options.prompts))
    tokens = torch.from_numpy(windows).to(options.device)
    rows = {}
    for name in CONTENDERS:
        model = model_of(name, directory, options.device)
        continued = greedy(model, tokens[: options.prompts, : options.prompt_tokens], options.new_tokens)
        sums = window_sums(model, tokens[: options.windows])
        rows[name] = {"tokens": continued, "nll": sums}
        del model
    manifest = read_manifest(directory)
    return {
        "what": "a real 2:4 model on a GPU: tokens and perplexity of tailcut's kernels and of dense products",
        "machine": asdict(describe_machine()),
        "gpu": describe_gpu() if options.device == "cuda" else {},
        "model": {"source": dict(manifest.source), "details": dict(manifest.details), "notes": list(manifest.notes)},
        "sparsity": manifest.sparsity,
        "text": text.name,
        "text_sha256": text.sha256,
        "context": options.context,
        "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens,
        "gaps": gaps(options, tokens, rows),
        "rows": rows,
    }


def greedy(model: Model, prompts: Tensor, count: int) -> list[list[int]]:
    """The `count` tokens after each prompt [prompts, n], one prompt at a time."""
    decoder = Decoder(model, 1, prompts.shape[1] + count)
    found: list[list[int]] = [decoder.generate(prompt[None], count)[0].tolist() for prompt in prompts]
    return found


def window_sums(model: Model, windows: Tensor) -> list[float]:
    """Nats over all tokens but the first of each window [windows, n], every token in a step of its own."""
    decoder = Decoder(model, 1, windows.shape[1])
    sums: list[float] = []
    for window in windows:
        logits = [decoder.prefill(window[None, :1])[0].to(torch.float32, copy=True)]
        for place in range(1, len(window) - 1):
            decoder.tokens[0, place] = window[place]  # what the loop chose is replaced by what the text says
            decoder.step()
            logits.append(decoder.logits[0].to(torch.float32, copy=True))  # the graph writes over its own
        nats = cross_entropy(torch.stack(logits), window[1:], reduction="none")
        sums.append(float(nats.sum(dtype=torch.float64)))
    return sums


def gaps(options: argparse.Namespace, tokens: Tensor, rows: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Contender -> for each prompt whose tokens part from dense's: where, and dense's gap between its two best logits."""
    model = model_of(DENSE, options.model, options.device)
    decoder = Decoder(model, 1, options.prompt_tokens + options.new_tokens)
    found: dict[str, list[dict[str, float]]] = {}
    for name in CONTENDERS[1:]:
        found[name] = []
        for number, (a, b) in enumerate(zip(rows[DENSE]["tokens"], rows[name]["tokens"], strict=True)):
            same = common(a, b)
            if same == len(a):
                continue
            until = torch.cat(
                [tokens[number, : options.prompt_tokens].cpu(), torch.tensor(a[:same], dtype=torch.int64)]
            )
            best = decoder.prefill(until[None].to(options.device))[0].float().topk(2).values
            found[name].append({"prompt": number, "same": same, "gap": float(best[0] - best[1])})
    return found


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two continuations share from their beginning."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def render(content: dict[str, Any]) -> str:
    """A row a contender: prompts that continue as dense does, perplexity, and its paired difference to dense."""
    rows = content["rows"]
    head = ["matrices", f"prompts with the same {content['new_tokens']} tokens as {DENSE}", "perplexity", "against it"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for name, row in rows.items():
        pairs = list(zip(rows[DENSE]["tokens"], row["tokens"], strict=True))
        same = sum(a == b for a, b in pairs)
        value = perplexity(np.asarray(row["nll"]), content["context"] - 1)
        lines.append(markdown_row([name, f"{same} of {len(pairs)}", f"{value:.3f}", _difference(content, name)]))
    note = (
        f"{content['model']['source'].get('name', '')}, {100 * content['sparsity']:.1f} % zeros, "
        f"{content['gpu'].get('name', 'CPU')}; {len(rows[DENSE]['nll'])} windows of {content['context']} tokens of "
        f"{content['text']}, one token a step; the last column is the paired difference of the loss as a ratio of "
        "perplexities, with its standard error over windows. " + _parting(content)
    )
    return "\n".join([*lines, "", note])


def _difference(content: dict[str, Any], name: str) -> str:
    if name == DENSE:
        return ""
    rows = content["rows"]
    mean, error = nats_above(rows[name]["nll"], rows[DENSE]["nll"], content["context"])
    return f"{100 * np.expm1(mean):+.2f} % (SE {100 * error:.2f})"


def _parting(content: dict[str, Any]) -> str:
    found = content["gaps"]["2:4 bf16"]
    if not found:
        return "No continuation parts."
    told = ", ".join(f"after {entry['same']} (gap {entry['gap']:.3f})" for entry in found)
    return f"2:4 bf16 parts from {DENSE} {told}: the gap is dense's, between its two best logits there."


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    action.add_argument("model", type=Path, help="a directory that `tailcut compress` cut to 2:4")
    action.add_argument("--text", type=Path, required=True)
    action.add_argument("--windows", type=int, default=16)
    action.add_argument("--context", type=int, default=512)
    action.add_argument("--prompts", type=int, default=16)
    action.add_argument("--prompt-tokens", type=int, default=64)
    action.add_argument("--new-tokens", type=int, default=256)
    action.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    action.add_argument("-o", "--output", type=Path, default=OUTPUT)
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.action == "run":
        if options.device == "cuda" and (problem := gpu_problem(triton=True)):
            print(f"gpu_quality: {problem}")
            raise SystemExit(EXIT_ENVIRONMENT)
        Checkpoint(options.model)  # a wrong directory is told before anything is loaded
        write_file(options.output, (json.dumps(run(options), indent=1) + "\n").encode())
    print(render(json.loads(options.output.read_bytes())))


if __name__ == "__main__":
    main()
