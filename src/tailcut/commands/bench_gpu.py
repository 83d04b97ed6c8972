"""`tailcut bench-gpu`: the GPU kernels beside dense cuBLAS, single matrices and whole decode steps."""

from pathlib import Path
from typing import Annotated

import typer

from tailcut import codec
from tailcut.errors import InputError
from tailcut.files import require_absent
from tailcut.progress import console


def command(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the result (JSON).")] = None,
    shapes: Annotated[
        str,
        typer.Option(
            help="Matrices as OUTxIN, comma-separated; `none` for decode steps only. [default: seven of 7B models]"
        ),
    ] = "",
    rows: Annotated[str, typer.Option(help="Rows of x, comma-separated.")] = "1,2,4,8,16,32,64,256,2048",
    contenders: Annotated[
        str, typer.Option(help="What to measure beside dense, comma-separated. [default: everything]")
    ] = "",
    models: Annotated[
        str, typer.Option(help="Shapes of the decode steps: llama-7b, llama-3-8b, mistral-7b, smollm2-135m, or `none`.")
    ] = "llama-7b",
    context: Annotated[int, typer.Option(help="Tokens in the cache when the timed steps begin.")] = 512,
    batch: Annotated[int, typer.Option(help="Sequences decoded together.")] = 1,
    rounds: Annotated[int, typer.Option(help="Turns that each contender takes.")] = 15,
    steps: Annotated[int, typer.Option(help="Timed decode steps a contender.")] = 50,
    tune: Annotated[bool, typer.Option(help="Measure the dispatch's paths first, or take its rule.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Time 2:4, unstructured, int4 and dense products on this machine's GPU, and decode steps of whole models.

    Weights are random and of real shapes. Without a usable GPU the exit code is 4.
    """
    from tailcut.bench.gpu import COMPILED, CONTENDERS, DECODERS, DENSE, SHAPES, GpuPlan, measure
    from tailcut.bench.gpu_tables import render

    if output is not None and not overwrite:
        require_absent(output)
    chosen = _words(contenders)
    plan = GpuPlan(
        shapes=tuple(_shape(word) for word in _words(shapes)) if shapes else SHAPES,
        rows=tuple(_number(word) for word in _words(rows)),
        contenders=tuple(dict.fromkeys((DENSE, *chosen))) if chosen else CONTENDERS,
        models=_words(models),
        decode_contenders=tuple(dict.fromkeys((DENSE, COMPILED, *chosen))) if chosen else DECODERS,
        context=context,
        batch=batch,
        rounds=rounds,
        steps=steps,
        seed=seed,
        tune=tune,
    )
    with console() as report:
        result = measure(plan, report)
    if output is not None:
        codec.save(result, output)
    print(codec.to_json(result) if json else render(result), end="" if json else "\n")


def _words(text: str) -> tuple[str, ...]:
    return () if text.strip() == "none" else tuple(word.strip() for word in text.split(",") if word.strip())


def _number(word: str) -> int:
    if not word.isdigit():
        raise InputError(f"{word!r} is not a number of rows")
    return int(word)


def _shape(word: str) -> tuple[int, int]:
    out, _, columns = word.partition("x")
    if not (out.isdigit() and columns.isdigit()):
        raise InputError(f"{word!r} is not a shape like 4096x11008 (outputs x inputs)")
    return int(out), int(columns)
