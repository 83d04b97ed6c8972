"""`tailcut sample-text`: text that a model writes, to learn from in a recovery."""

import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tailcut.progress import console


def command(
    model: Annotated[Path, typer.Argument(help="The dense model: the teacher of `tailcut recover`.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="A .jsonl file; must not exist.")],
    tokens: Annotated[int, typer.Option(help="Tokens to write, at least; whole batches are written.")],
    length: Annotated[int, typer.Option(help="Tokens of a sequence; documents longer than that are cut.")] = 512,
    batch: Annotated[int | None, typer.Option(help="Sequences at once. [default: 512 on a GPU, 16 on a CPU]")] = None,
    temperature: Annotated[float, typer.Option(help="1 samples what the model predicts.")] = 1.0,
    prompts: Annotated[
        Path | None, typer.Option(help="A text whose pieces are continued. [default: from the begin-of-text token]")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of such a piece.")] = 16,
    seed: Annotated[int, typer.Option(help="The same seed, batch and device give the same text.")] = 0,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one; bfloat16 there), cpu or cuda.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON on stdout.")] = False,
) -> None:
    """Sample documents from MODEL: its own distribution, which is what a cut copy has to learn again.

    Finished batches are kept in OUTPUT.work: after an interruption run the same command again.
    """
    from tailcut.compress.sampling import Sampling, sample_text

    asked = Sampling(
        tokens, length, batch, temperature, None if prompts is None else str(prompts), prompt_tokens, seed, device
    )
    with console(quiet=json) as report:
        done = sample_text(model, out, asked, report=report)
    rate = done.fresh / max(1e-9, done.seconds)
    if json:
        print(jsonlib.dumps(asdict(done) | {"tokens_per_second": rate, "bytes": out.stat().st_size}))
    else:
        size = out.stat().st_size / 1e6
        print(f"{out}: {done.documents:,} documents, {done.tokens:,} tokens, {size:.1f} MB; {rate:,.0f} tokens/s")
