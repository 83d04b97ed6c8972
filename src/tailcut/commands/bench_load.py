"""`tailcut bench-load`: concurrent streams and long contexts, dense beside sparse."""

from pathlib import Path
from typing import Annotated

import typer

from tailcut import codec
from tailcut.errors import EXIT_ENVIRONMENT, InputError
from tailcut.files import require_absent, write_file
from tailcut.progress import console


def command(
    dense: Annotated[Path, typer.Argument(help="The dense package (from `tailcut export`).")],
    sparse: Annotated[Path, typer.Argument(help="The sparse package.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the result (JSON).")],
    engine: Annotated[
        str, typer.Option(help="One or several, comma-separated; `tailcut engines list` names them.")
    ] = "tailcut",
    streams: Annotated[
        str | None,
        typer.Option(help="Stream counts, comma-separated. [default: 1,2,4,8, or none where --contexts is given]"),
    ] = None,
    contexts: Annotated[
        str, typer.Option(help="Context lengths to time decode steps at, such as 128,512,2048,8192.")
    ] = "",
    prompt: Annotated[int, typer.Option(help="Prompt tokens of a request.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="New tokens of a request.")] = 64,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests a second that arrive at random moments. [default: every stream asks again at once]"
        ),
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests a stream ends in one visit.")] = 1,
    blocks: Annotated[int, typer.Option(help="ABBA blocks (four visits) of each point.")] = 4,
    steps: Annotated[int, typer.Option(help="Decode steps a visit, of --contexts.")] = 16,
    threads: Annotated[int | None, typer.Option(help="Threads of each engine. [default: all usable cores]")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result (SVG); needs tailcut[report].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts, of arrivals and of the bootstrap.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
) -> None:
    """Serve several streams from each package and compare throughput, times to first and next tokens.

    A run that is broken off goes on with the points that are missing. If nothing could be measured the exit code is 4.
    """
    from tailcut.bench.load_run import bench_load, partial_path
    from tailcut.bench.load_values import LoadPlan
    from tailcut.bench.machine import physical_cpus

    for path in (output, plot):
        if path is not None and not overwrite:
            require_absent(path)
    counts = streams if streams is not None else "" if contexts else "1,2,4,8"
    plan = LoadPlan(
        streams=_numbers(counts, "stream counts"),
        contexts=_numbers(contexts, "contexts"),
        prompt_tokens=prompt,
        new_tokens=new_tokens,
        rate=rate,
        requests=requests,
        blocks=blocks,
        steps=steps,
        threads=threads or len(physical_cpus()),
        seed=seed,
    )
    chosen = [name.strip() for name in engine.split(",") if name.strip()]
    with console() as report:
        result = bench_load(dense, sparse, engines=chosen, plan=plan, partial=partial_path(output), report=report)
    codec.save(result, output)
    partial_path(output).unlink(missing_ok=True)
    if plot is not None:
        from tailcut.bench.load_plots import load_svg

        write_file(plot, load_svg(result))
    if json:
        print(codec.to_json(result), end="")
    else:
        from tailcut.bench.load_tables import show

        show(result)
    if all(one.status == "not measured" for one in result.engines):
        raise typer.Exit(EXIT_ENVIRONMENT)


def _numbers(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers from comma-separated text, each once, in the order given."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() for word in words):
        raise InputError(f"{what} {text!r} are not comma-separated whole numbers such as 1,2,4")
    return tuple(dict.fromkeys(int(word) for word in words))
