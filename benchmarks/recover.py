"""Recovery of a cut model by its dense self: perplexity dense, one-shot and recovered, with minutes, tokens and masks.

    python benchmarks/recover.py run MODEL --text wiki.test.raw --calibration c4.jsonl --train c4.jsonl \
        --sample-tokens 20000000 --work DIR --minutes 20 --device cuda -o benchmarks/results/recover.json
    python benchmarks/recover.py table benchmarks/results/recover.json

Each target (a sparsity, N:M, either with +int8 or +int4, or a name that --plan NAME=allocation.json gives) is cut into DIR
(kept there, so that it can be exported), scored on the whole text, recovered, and scored again.
--sample-tokens first lets the dense model write so many tokens to DIR/teacher.jsonl, which are learnt from beside --train.
Rows already in the output are kept, a row that was interrupted goes on from its checkpoint, and --seconds begins no new row
after so many, so the script can be stopped and run again. The text that is scored is never learnt from: the recovery stops
by the end of its own training text.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_common import (  # beside this script
    add_device,
    add_model_and_text,
    add_scoring,
    add_table,
    nats_above,
    perform,
)
from quality import Table, head_of, score

from tailcut import codec
from tailcut.allocation import Allocation, LayerPlan, Unstructured, parse_nm
from tailcut.bench.report import markdown_row
from tailcut.checkpoint import Checkpoint
from tailcut.compress.calibration import Calibration
from tailcut.compress.discovery import find_linears
from tailcut.compress.perplexity import tokenise
from tailcut.compress.recover import recover
from tailcut.compress.run import compress
from tailcut.compress.sampling import Sampling, sample_text
from tailcut.files import write_file
from tailcut.progress import console
from tailcut.recovering import DEFAULT_METHODS, Effort, Recovering, parse_methods, try_recovery
from tailcut.results import RecoveryResult
from tailcut.windows import read_text

TARGETS = ("0.5", "0.6", "2:4", "0.5+int8")
OUTPUT = Path("benchmarks/results/recover.json")
TEACHER_TEXT = "teacher.jsonl"


def plan_of(target: str) -> LayerPlan:
    """'0.5', '2:4', '0.5+int8', '2:4+int4' -> what every matrix gets."""
    pattern, _, precision = target.partition("+")
    return LayerPlan(
        parse_nm(pattern) if ":" in pattern else Unstructured(float(pattern)),
        {"": None, "int8": 8, "int4": 4}[precision],
    )


def allocation_of(options: argparse.Namespace, target: str) -> Allocation:
    """The file that --plan names for a target, or the same for every matrix."""
    if file := dict(word.split("=", 1) for word in options.plan).get(target):
        return codec.load(Allocation, Path(file))
    plan = plan_of(target)
    return Allocation(
        {linear.name: plan for linear in find_linears(Checkpoint(options.model))}, {"allocator": "uniform"}
    )


def cut(options: argparse.Namespace, target: str, out: Path) -> float:
    """Compress to `out` unless that was done; seconds it took."""
    seconds = out.with_name(f"{out.name}.seconds")
    if not out.is_dir():
        began = time.perf_counter()
        calibration = Calibration(str(options.calibration), options.samples, options.seqlen, options.seed)
        compress(
            options.model, allocation_of(options, target), out,
            pruner=options.pruner, calibration=calibration, device=options.device,
        )  # fmt: skip
        write_file(seconds, f"{time.perf_counter() - began}".encode())
    return float(seconds.read_bytes()) if seconds.is_file() else float("nan")


def measure(target: str, windows: Any, options: argparse.Namespace) -> dict[str, Any]:  # noqa: ANN401
    """One row. The cut and the recovered model stay in the work directory."""
    folder = options.work / target.replace(":", "-")
    one_shot, out = folder / "cut", folder / "recovered"
    seconds = cut(options, target, one_shot)
    result = try_recovery(out) if out.is_dir() else None
    began = time.perf_counter()
    if result is None:
        with console() as report:
            result = recover(one_shot, options.model, out, settings_of(options), report=report)
    whole = time.perf_counter() - began
    sides = {"cut": one_shot, "recovered": out}
    row = {"compress_s": seconds, "recover_s": whole, **facts_of(result)}
    for name, directory in sides.items():
        found = score(directory, {options.context: windows}, options.device, options.batch_tokens)
        row |= {f"ppl_{name}": found[f"ppl_{options.context}"], f"nll_{name}": found[f"nll_{options.context}"]}
    if not options.keep:
        shutil.rmtree(folder)
    return row


def facts_of(result: RecoveryResult) -> dict[str, Any]:
    """What a row keeps of a recovery."""
    return {
        "training_minutes": result.seconds / 60,
        "steps": sum(stage.steps for stage in result.stages),
        "tokens_learnt": sum(stage.tokens for stage in result.stages if stage.steps),
        "recovery": asdict(result),
    }


def settings_of(options: argparse.Namespace) -> Recovering:
    """The recovery that is asked for."""
    texts = [*options.train, *([options.work / TEACHER_TEXT] if options.sample_tokens else [])]
    return Recovering(
        tuple(str(path) for path in texts),
        Effort(steps=options.steps) if options.steps else Effort(minutes=options.minutes),
        parse_methods(options.methods),
        seqlen=options.train_seqlen,
        batch=options.train_batch,
        rate=options.rate,
        features=options.features,
        samples=options.train_samples,
        seed=options.seed,
        device=options.device,
        compiled=options.compile,
    )


def sample(options: argparse.Namespace) -> dict[str, Any] | None:
    """The teacher's own text, written once; how much and how fast."""
    out, note = options.work / TEACHER_TEXT, options.work / "teacher.json"
    if not options.sample_tokens:
        return None
    if not out.is_file():
        asked = Sampling(options.sample_tokens, batch=options.sample_batch, seed=options.seed, device=options.device)
        with console() as report:
            done = sample_text(options.model, out, asked, report=report)
        facts = asdict(done) | {"tokens_per_second": done.fresh / max(1e-9, done.seconds)}
        write_file(note, json.dumps(facts).encode())
    read: dict[str, Any] | None = json.loads(note.read_bytes()) if note.is_file() else None
    return read


def run(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    options.work.mkdir(parents=True, exist_ok=True)
    windows = tokenise(options.model, read_text(options.text), options.context, options.windows)[0]
    head = head_of("perplexity of a cut model before and after recovery by its dense self", options, windows)
    head |= {"pruner": options.pruner, "train": [path.name for path in options.train], "sampled": sample(options)}
    table = Table(options.output, head)
    if "dense" not in table.data["rows"]:
        found = score(options.model, {options.context: windows}, options.device, options.batch_tokens)
        table.add("dense", {"ppl": found[f"ppl_{options.context}"], "nll": found[f"nll_{options.context}"]})
    for target in options.targets:
        if target not in table.data["rows"] and time.perf_counter() - began < options.seconds:
            table.add(target, measure(target, windows, options))


def render(content: dict[str, Any]) -> str:
    """A row a target; the change to dense in per cent, and in nats a token with its standard error over windows."""
    rows, context = content["rows"], content["context"]
    dense = rows["dense"]
    head = ["target", "one-shot", "recovered", "nats above dense (SE)", "minutes", "million tokens", "mask"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for target, row in rows.items():
        if target != "dense":
            lines.append(markdown_row([target, *_cells(row, dense, context)]))
    cal, machine, sampled = content["calibration"], content["machine"], content["sampled"]
    learnt = [row["recovery"]["train_tokens"] for target, row in rows.items() if target != "dense"]
    texts = ", ".join(content["train"])
    if sampled:
        rate = f"{sampled['tokens_per_second']:,.0f} tokens/s"
        texts += f"{' and ' if texts else ''}{sampled['tokens'] / 1e6:.1f} M tokens that the dense model wrote ({rate})"
    note = (
        f"{content['model']['name']}, dense {dense['ppl']:.2f}; {content['windows']} windows of {context} tokens of "
        f"{content['text']['name']}, which was not learnt from. Cut by {content['pruner']} with {cal['samples']} x "
        f"{cal['seqlen']} tokens of {cal['file']}. Learnt from {texts}"
        f"{f' ({max(learnt):,} tokens in all)' if learnt else ''}. Minutes are those of the methods: "
        f"{', '.join(_methods(rows))}. {machine['accelerator'] or machine['cpu']}, commit {machine['commit']}."
    )
    return "\n".join([*lines, "", note])


def render_short(content: dict[str, Any]) -> str:
    """For a page with other tables: its title, and no masks."""
    rows, model = content["rows"], content["model"]["name"]
    head = ["target", "one-shot", "recovered", "nats above dense (SE)", "minutes of learning"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    cut = {target: row for target, row in rows.items() if target != "dense"}
    lines += [
        markdown_row([target, *_cells(row, rows["dense"], content["context"])[:4]]) for target, row in cut.items()
    ]
    machine = content["machine"]
    title = (
        f"**Perplexity after recovery** by the dense model ({model}, dense {rows['dense']['ppl']:.2f} at context "
        f"{content['context']}), every zero kept; "
        f"{machine['accelerator'] or machine['cpu']}. How and from which text: [docs/recovery.md](docs/recovery.md)."
    )
    return "\n".join([title, "", *lines])


def _methods(rows: dict[str, Any]) -> list[str]:
    found = [stage["method"] for row in rows.values() for stage in row.get("recovery", {}).get("stages", ())]
    return list(dict.fromkeys(found))


def _cells(row: dict[str, Any], dense: dict[str, Any], context: int) -> list[str]:
    mean, error = nats_above(row["nll_recovered"], dense["nll"], context)
    recovery = row["recovery"]
    before, after = recovery["mask_sha256_before"], recovery["mask_sha256_after"]
    mask = (
        f"same ({after[:8]})"
        if before == after
        else f"{recovery['new_zeros']:,} more zeros ({before[:8]}, {after[:8]})"
    )
    return [
        _change(row["ppl_cut"], dense["ppl"]),
        _change(row["ppl_recovered"], dense["ppl"]),
        f"{mean:+.4f} ({error:.4f})",
        f"{row['training_minutes']:.1f}",
        f"{row['tokens_learnt'] / 1e6:.1f}",
        mask,
    ]


def _change(value: float, dense: float) -> str:
    return f"{value:.2f} ({value / dense - 1:+.1%})"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("run", help="measure")
    add_model_and_text(action, samples=128, seqlen=1024, output=OUTPUT)
    add_scoring(action, context=2048, windows=None, batch_tokens=8192)
    add_device(action)
    action.add_argument("--train", type=Path, nargs="*", default=[], help="texts to learn from")
    action.add_argument("--sample-tokens", type=int, default=0)
    action.add_argument("--sample-batch", type=int, default=None)
    action.add_argument("--targets", nargs="+", default=list(TARGETS))
    action.add_argument("--plan", nargs="*", default=[], help="NAME=allocation.json, for the target NAME")
    action.add_argument("--minutes", type=float, default=20.0, help="of training, a row")
    action.add_argument("--steps", type=int, default=None, help="in place of minutes")
    action.add_argument("--methods", default=",".join(DEFAULT_METHODS))
    action.add_argument("--train-seqlen", type=int, default=512)
    action.add_argument("--train-batch", type=int, default=32)
    action.add_argument("--train-samples", type=int, default=128)
    action.add_argument("--rate", type=float, default=None)
    action.add_argument("--features", type=float, default=0.0)
    action.add_argument("--compile", action="store_true")
    action.add_argument("--pruner", default="sparsegpt")
    action.add_argument(
        "--keep", action=argparse.BooleanOptionalAction, default=True, help="leave the models in --work"
    )
    add_table(actions)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    perform(parse(arguments), run, render)


if __name__ == "__main__":
    main()
