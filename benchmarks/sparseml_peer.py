"""SparseML 1.8's Wanda, Wanda with OWL and OBCQ (SparseGPT) against ours: same model, same calibration tokens.

    tailcut engines install sparseml
    python benchmarks/sparseml_peer.py run MODEL --text wiki.test.raw --calibration c4.jsonl --work DIR \
        -o benchmarks/results/peer_sparseml.json
    python benchmarks/sparseml_peer.py table benchmarks/results/peer_sparseml.json

Each row cuts MODEL into DIR and is scored on the same windows. `sparseml` runs its recipes as they are by default (one pass of
calibration text through the dense model); `sparseml-sequential` sets `sequential_update`, which our pruners always
do. Layer errors are ||(W' - W) X||^2 / ||W X||^2 with X the calibration inputs of the *dense* model, the quantity that the
one-pass mode minimises. Rows in the output are kept: run again to go on; --seconds stops before the next row.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from bench_common import add_model_and_text, add_scoring, add_table, nats_above, perform  # beside this script
from quality import Table, head_of, score

from tailcut.allocation import Allocation, Budget, LayerPlan, LayerScores, Unstructured, parse_nm
from tailcut.bench import peers
from tailcut.bench.report import markdown_row
from tailcut.bench.worker import Worker
from tailcut.checkpoint import Checkpoint
from tailcut.compress.allocators import Settings, allocate
from tailcut.compress.calibration import Calibration, draw
from tailcut.compress.discovery import Linear, find_linears, read_weight
from tailcut.compress.measure import measure
from tailcut.compress.perplexity import tokenise
from tailcut.compress.run import compress
from tailcut.windows import read_text

OURS, THEIRS, THEIRS_SEQUENTIAL = "tailcut", "sparseml", "sparseml-sequential"
SIDES = (OURS, THEIRS, THEIRS_SEQUENTIAL)
VARIANTS = ("wanda 0.5", "wanda+owl 0.5", "sparsegpt 0.5", "wanda 2:4", "sparsegpt 2:4")
OWL_M, OWL_LAMBDA = 5, 0.08  # the paper's, on both sides
MODIFIERS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
MAX_TOKENS = 8192  # of the inputs' second moments at once
OUTPUT = Path("benchmarks/results/peer_sparseml.json")


def their_recipe(variant: str, sequential: bool) -> str:
    """YAML of one variant in SparseML's spelling; everything that is not named is its default."""
    method, target = variant.split()
    pruner, _, profile = method.partition("+")
    settings: dict[str, Any] = {"sparsity": 0.5, "sequential_update": sequential}
    if ":" in target:
        settings["mask_structure"] = target
    else:
        settings["sparsity"] = float(target)
    if profile:
        settings |= {"sparsity_profile": "owl", "owl_m": OWL_M, "owl_lmbda": OWL_LAMBDA}
    return str(yaml.safe_dump({"oneshot_stage": {"pruning_modifiers": {MODIFIERS[pruner]: settings}}}))


def our_plan(variant: str, linears: Sequence[Linear], owl: Callable[[], LayerScores]) -> Allocation:
    """The same variant as a plan."""
    method, target = variant.split()
    if "+owl" in method:
        return allocate("owl", owl(), Budget(float(target)), Settings(spread=OWL_LAMBDA, compat=True))
    pattern = parse_nm(target) if ":" in target else Unstructured(float(target))
    return Allocation({linear.name: LayerPlan(pattern) for linear in linears}, {"allocator": "uniform"})


@contextmanager
def opened(model: Path, threads: int) -> Iterator[tuple[Worker, Mapping[str, str]]]:
    """SparseML's process with the model open, and the versions in it."""
    launch = peers.load("sparseml").launch(model, threads)
    with Worker(launch, timeout_s=7200) as worker:
        reply, _ = worker.ask("open", **launch.settings)
        yield worker, reply["versions"]


class Bench:
    """What all rows share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.calibration = Calibration(str(options.calibration), options.samples, options.seqlen, options.seed)
        self.checkpoint = Checkpoint(options.model)
        self.linears = find_linears(self.checkpoint)
        config = self.checkpoint.config
        self.tokens = draw(self.calibration, options.model, int(config["max_position_embeddings"])).tokens
        self.moments: dict[str, torch.Tensor] = {}

    def owl(self) -> LayerScores:
        return measure(self.options.model, metrics=("owl",), device="cpu", calibration=self.calibration).scores

    def cut(self, side: str, variant: str, out: Path) -> dict[str, Any]:
        """Write one variant to `out`; seconds of the cutting."""
        if side == OURS:
            plan, began = our_plan(variant, self.linears, self.owl), time.perf_counter()
            pruner = variant.split(maxsplit=1)[0].partition("+")[0]
            compress(self.options.model, plan, out, pruner=pruner, calibration=self.calibration, device="cpu")
            return {"cut_s": time.perf_counter() - began}
        recipe = their_recipe(variant, side == THEIRS_SEQUENTIAL)
        with opened(self.options.model, self.options.threads) as (worker, versions):
            reply, _ = worker.ask("cut", {"tokens": self.tokens}, recipe=recipe, out=str(out.resolve()))
        return {"cut_s": reply["seconds"], "versions": dict(versions)}

    def row(self, side: str, variant: str, windows: Any) -> dict[str, Any]:  # noqa: ANN401  (an integer array)
        """Cut, score, compare with the dense matrices, and keep the directory for `agreement`."""
        out = self.directory(side, variant)
        if out.exists():
            raise SystemExit(f"{out} is left from a run that was stopped; remove it")
        facts = self.cut(side, variant, out)
        facts |= score(out, {self.options.context: windows}, "cpu", self.options.batch_tokens)
        return facts | self.compared(Checkpoint(out))

    def directory(self, side: str, variant: str) -> Path:
        return Path(self.options.work) / f"{side}-{variant}".replace(" ", "-").replace(":", "of")

    def compared(self, cut: Checkpoint) -> dict[str, Any]:
        """Zeros, sparsities of the blocks, and each matrix's layer error (mean, and the worst)."""
        self.moments = self.moments or second_moments(self.options.model, self.tokens, self.linears)
        errors: list[float] = []
        zeros: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for linear in self.linears:
            dense, found = (
                torch.from_numpy(np.array(read_weight(one, linear))).float() for one in (self.checkpoint, cut)
            )
            moment = self.moments[linear.name]
            errors.append(float(_energy(found - dense, moment) / _energy(dense, moment)))
            zeros[linear.block] = zeros.get(linear.block, 0) + int((found == 0).sum())
            sizes[linear.block] = sizes.get(linear.block, 0) + linear.parameters
        blocks = [round(zeros[block] / sizes[block], 5) for block in sorted(sizes)]
        return {
            "sparsity": sum(zeros.values()) / sum(sizes.values()),
            "block_sparsity": blocks,
            "layer_error": float(np.mean(errors)),
            "layer_error_worst": max(errors),
        }

    def agreement(self, side: str, variant: str) -> float | None:
        """Share of weights that both sides keep or both remove, over all matrices; None where a directory is gone."""
        folders = [self.directory(one, variant) for one in (OURS, side)]
        if not all((folder / "config.json").is_file() for folder in folders):
            return None
        ours, theirs = (Checkpoint(folder) for folder in folders)
        same = sum(
            int(((read_weight(ours, linear) == 0) == (read_weight(theirs, linear) == 0)).sum())
            for linear in self.linears
        )
        return same / sum(linear.parameters for linear in self.linears)


def _energy(weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """||W X||^2 from W [out, in] and X X^T [in, in]."""
    return ((weight @ moment) * weight).sum(dtype=torch.float64)


def second_moments(model_dir: Path, tokens: Any, linears: Sequence[Linear]) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """X X^T float32 [in, in] of every matrix's inputs in the dense model."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    model.eval()
    found: dict[str, torch.Tensor] = {}
    last: dict[str, Any] = {"inputs": None, "moment": None}  # q, k, v and gate, up read the same inputs

    def hook(name: str) -> Callable[..., None]:
        def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if last["inputs"] is not given[0]:
                rows = given[0].reshape(-1, given[0].shape[-1])
                last.update(inputs=given[0], moment=rows.T @ rows)
            found[name] = found[name] + last["moment"] if name in found else last["moment"]

        return add

    handles = [model.get_submodule(linear.name).register_forward_hook(hook(linear.name)) for linear in linears]
    step = max(1, MAX_TOKENS // tokens.shape[1])
    with torch.inference_mode():
        for start in range(0, len(tokens), step):
            model.model(input_ids=torch.from_numpy(tokens[start : start + step]))
    for handle in handles:
        handle.remove()
    return found


def first_blocks(model_dir: Path, count: int, out: Path) -> Path:
    """The model without its later decoder blocks, in `out`: layer errors stay real, perplexity means nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (out / "config.json").is_file():
        options: dict[str, Any] = {"local_files_only": True}
        model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, num_hidden_layers=count, dtype=torch.float32, **options
        )
        AutoTokenizer.from_pretrained(model_dir, **options).save_pretrained(out)
        model.save_pretrained(out, safe_serialization=True)
    return out


def run(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    if reason := peers.load("sparseml").available():
        raise SystemExit(f"sparseml: {reason}")
    torch.set_num_threads(options.threads)
    if options.blocks:
        options.model = first_blocks(
            options.model, options.blocks, options.work / f"{options.model.name}-first{options.blocks}"
        )
    windows = tokenise(options.model, read_text(options.text), options.context, options.windows)[0]
    what = "SparseML 1.8 against tailcut on the same calibration tokens: one-shot, no recovery"
    table = Table(
        options.output,
        head_of(what, options, windows) | {"owl": {"m": OWL_M, "lambda": OWL_LAMBDA}, "blocks": options.blocks},
    )
    bench = Bench(options)
    if "dense" not in table.data["rows"]:
        table.add("dense", score(options.model, {options.context: windows}, "cpu", options.batch_tokens))
    for variant in options.variants:
        for side in options.sides:
            key = f"{side} {variant}"
            if key in table.data["rows"] or time.perf_counter() - began > options.seconds:
                continue
            row = bench.row(side, variant, windows)
            if side != OURS:
                row["agreement"] = bench.agreement(side, variant)
            table.add(key, row)


def render(content: dict[str, Any]) -> str:
    """A row a side and variant; in brackets the mean difference to ours in nats a token and its standard error."""
    rows, context = content["rows"], content["context"]
    lines = [
        markdown_row(["variant", "side", "perplexity", "layer error", "sparsity", "same mask as ours", "s"]),
        "|" + " --- |" * 7,
    ]
    for variant in VARIANTS:
        for side in SIDES:
            row, ours = rows.get(f"{side} {variant}"), rows.get(f"{OURS} {variant}")
            if row is None:
                continue
            same = row.get("agreement")
            cells = [
                variant,
                side,
                "" if content.get("blocks") else _perplexity(row, ours, context),
                f"{row['layer_error']:.4f}",
                f"{row['sparsity']:.4f}",
            ]
            lines.append(markdown_row([*cells, "" if same is None else f"{same:.1%}", f"{row['cut_s']:.0f}"]))
    cal, machine = content["calibration"], content["machine"]
    quality = (
        "only these blocks, so no perplexity"
        if content.get("blocks")
        else f"dense {rows['dense'][f'ppl_{context}']:.2f}; the first {content['windows']} windows of {context} tokens of "
        f"{content['text']['name']}"
    )
    note = (
        f"{content['model']['name']}, {quality}; calibration {cal['samples']} x {cal['seqlen']} tokens of {cal['file']}, "
        f"seed {cal['seed']}, the same token ids on both sides; OWL with M {content['owl']['m']} and lambda "
        f"{content['owl']['lambda']} on both. In brackets: nats a token above ours over the same windows and the standard error. "
        f"Seconds on a shared machine, no benchmark. {machine['cpu']}, commit {machine['commit']}."
    )
    return "\n".join([*lines, "", note])


def _perplexity(row: dict[str, Any], ours: dict[str, Any] | None, context: int) -> str:
    told = f"{row[f'ppl_{context}']:.2f}"
    if ours is None or ours is row:
        return told
    return "{} ({:+.4f}, {:.4f})".format(told, *nats_above(row[f"nll_{context}"], ours[f"nll_{context}"], context))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    add_model_and_text(action, samples=32, seqlen=512, output=OUTPUT)
    add_scoring(action, context=512, windows=40, batch_tokens=2048)
    action.add_argument("--blocks", type=int, help="only the model's first so many decoder blocks (no perplexity then)")
    action.add_argument("--threads", type=int, default=2)
    action.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    action.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    action.set_defaults(device="cpu")
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    perform(parse(arguments), run, render)


if __name__ == "__main__":
    main()
