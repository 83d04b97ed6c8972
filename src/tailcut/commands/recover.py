"""`tailcut recover`: quality back after cutting, with every zero kept."""

from pathlib import Path
from typing import Annotated

import typer

from tailcut import codec
from tailcut.progress import console
from tailcut.recovering import DEFAULT_METHODS, Recovering, parse_effort, parse_methods
from tailcut.results import RecoveryResult, RecoveryStage


def command(
    model: Annotated[Path, typer.Argument(help="A cut directory, as `tailcut compress` writes it.")],
    teacher: Annotated[Path, typer.Option(help="The dense model that it was cut from.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The recovered directory; must not exist.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help=".txt or .jsonl to learn from; may be given several times. Never the text you judge by."),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(help="Time to learn (20m, 1.5h) or optimiser steps (500steps), shared by the methods that learn."),
    ] = "20m",
    method: Annotated[
        str,
        typer.Option(
            help="One or more of least-squares, blockwise, distill, lora, comma-separated, done in this order."
        ),
    ] = ",".join(DEFAULT_METHODS),
    heldout: Annotated[
        Path | None, typer.Option(help="Text to stop by. [default: the last 20th of every --text, 32 windows at most]")
    ] = None,
    seqlen: Annotated[int, typer.Option(help="Tokens a window.")] = 512,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = 32,
    at_once: Annotated[
        int | None,
        typer.Option(help="Windows in memory at once, where a whole batch does not fit. [default: the batch]"),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate. [default: 3e-4; 1e-3 for lora]")] = None,
    features: Annotated[
        float, typer.Option(help="distill, lora: weight of the loss on every block's output beside the logits' KL.")
    ] = 0.0,
    rank: Annotated[int, typer.Option(help="lora: rank of the change of a matrix.")] = 16,
    samples: Annotated[int, typer.Option(help="least-squares, blockwise: windows that are looked at.")] = 128,
    patience: Annotated[
        int, typer.Option(help="Stop after so many of 24 looks at the held-out text without a better one.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the order of the windows and of everything else random.")] = 0,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="distill, lora: let torch.compile fuse kernels; a minute or two first.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Teach a cut MODEL what its dense teacher predicts; weights that are zero stay zero, integers stay on their grid.

    The result is a model directory like MODEL, with the loss curve in recovery.json. Checkpoints are kept in OUTPUT.work:
    after an interruption run the same command again. `tailcut sample-text` writes text where you have none. Next:
    `tailcut export`.
    """
    from tailcut.compress.recover import recover

    settings = Recovering(
        texts=tuple(str(path) for path in text or ()),
        budget=parse_effort(budget),
        methods=parse_methods(method),
        heldout=None if heldout is None else str(heldout),
        seqlen=seqlen,
        batch=batch,
        at_once=at_once,
        rate=rate,
        features=features,
        rank=rank,
        samples=samples,
        patience=patience,
        seed=seed,
        device=device,
        compiled=compiled,
    )
    with console(quiet=json) as report:
        result = recover(model, teacher, out, settings, report=report)
    print(codec.to_json(result) if json else _summary(result, out), end="")


def _summary(result: RecoveryResult, out: Path) -> str:
    kl = f"{result.heldout_kl_before:.4f} -> {result.heldout_kl_after:.4f}"
    lines = [f"{out}: KL to {result.teacher} on held-out text {kl} nats a token"]
    lines += [_told(stage) for stage in result.stages]
    same = (
        "the same" if result.mask_sha256_before == result.mask_sha256_after else f"{result.new_zeros} zeros were added"
    )
    lines.append(f"{result.sparsity:.4f} of the block linears are zero; mask {result.mask_sha256_after[:16]}: {same}")
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)]) + "\n"


def _told(stage: RecoveryStage) -> str:
    counts = f"{stage.steps} steps, {stage.tokens:,} tokens, " if stage.steps else ""
    return f"{stage.method}: {counts}{stage.seconds / 60:.1f} min; {stage.ended}"
