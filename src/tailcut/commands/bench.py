"""`tailcut bench`: dense beside sparse, out of process, interleaved, with evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from tailcut import codec
from tailcut.errors import EXIT_ENVIRONMENT, InputError
from tailcut.files import require_absent
from tailcut.progress import console


def command(
    dense: Annotated[Path, typer.Option(help="The dense package (from `tailcut export`).")],
    sparse: Annotated[Path, typer.Option(help="The sparse package.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the result (JSON).")],
    engines: Annotated[
        str, typer.Option(help="Comma-separated; `tailcut engines list` names them. The gate judges the first.")
    ] = "tailcut,onnxruntime",
    threads: Annotated[int | None, typer.Option(help="Threads of each engine. [default: all usable cores]")] = None,
    batch: Annotated[int, typer.Option(help="Sequences decoded together.")] = 1,
    prompt: Annotated[int, typer.Option(help="Prompt tokens of the prefill (time to first token).")] = 64,
    context: Annotated[int, typer.Option(help="KV cache length at the end of the decode steps.")] = 256,
    new_tokens: Annotated[int, typer.Option(help="Decode steps a side takes in one ABBA block.")] = 32,
    blocks: Annotated[int, typer.Option(help="ABBA blocks of decoding, where no option below decides.")] = 8,
    precision: Annotated[
        float | None, typer.Option(help="Stop when the speedup is known within this share, such as 0.02.")
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(help="Stop when the speedup is clear of this, on either side, such as 1.5.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop the decode blocks of an engine after so long.")] = None,
    min_blocks: Annotated[int, typer.Option(help="With these three: blocks at least.")] = 4,
    max_blocks: Annotated[int, typer.Option(help="With these three: blocks at most.")] = 32,
    prefill_blocks: Annotated[int | None, typer.Option(help="ABBA blocks of prefill. [default: up to 4]")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Also score perplexity on this text (.txt or .jsonl) with ONNX Runtime.")
    ] = None,
    text_context: Annotated[int, typer.Option(help="Tokens a perplexity window.")] = 512,
    windows: Annotated[int | None, typer.Option(help="Score only so many windows. [default: the whole text]")] = None,
    kl: Annotated[
        bool, typer.Option("--kl", help="With --text: also KL(dense || sparse) of the next token, for max_kl.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the prompt tokens and of the bootstrap.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Time SPARSE against DENSE on each engine and write every raw sample with the machine it came from.

    --precision, --at-least and --minutes end the session early, with intervals that allow for it (docs/benchmark.md).
    An engine that cannot run is "not measured" with the reason; if that is all of them, the exit code is 4.
    """
    from tailcut.bench.machine import physical_cpus
    from tailcut.bench.quality import package_quality
    from tailcut.bench.run import bench
    from tailcut.results import Stopping, Workload
    from tailcut.windows import read_text

    if not overwrite:
        require_absent(output)
    stopping = None
    if precision is not None or at_least is not None or minutes is not None:
        stopping = Stopping(precision, at_least, minutes, min_blocks, max_blocks)
    workload = Workload(
        batch=batch,
        prompt_tokens=prompt,
        new_tokens=new_tokens,
        context=context,
        threads=threads or len(physical_cpus()),
        blocks=blocks,
        prefill_blocks=prefill_blocks,
        seed=seed,
        stopping=stopping,
    )
    chosen = [name.strip() for name in engines.split(",") if name.strip()]
    if kl and text is None:
        raise InputError("--kl is measured on a text: give one with --text")
    evaluated = read_text(text) if text else None
    with console() as report:
        result = bench(dense, sparse, engines=chosen, workload=workload, report=report)
        if evaluated is not None:
            quality = package_quality(
                dense, sparse, evaluated, context=text_context, limit=windows, workload=workload, kl=kl, report=report
            )
            result = replace(result, quality=(quality,))
    codec.save(result, output)
    if json:
        print(codec.to_json(result), end="")
    else:
        from tailcut.bench.report import summary

        summary(result, None)
    if all(engine.status == "not measured" for engine in result.engines):
        raise typer.Exit(EXIT_ENVIRONMENT)
