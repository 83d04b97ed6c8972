"""`tailcut sweep`: allocators x sparsities x patterns x weights x engines on this machine, and what to deploy of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tailcut import codec
from tailcut.commands._options import CalibrationText, expanded
from tailcut.commands._store import StoreFile
from tailcut.progress import console
from tailcut.sweep_grid import read_grid, split_numbers, split_words

_OWN = ("source", "out", "drawn", "stored", "keep", "retry", "json")  # no settings of the grid
_WORDS = ("allocator", "pattern", "weights", "engines", "baselines")


@expanded
def command(
    source: Annotated[
        str, typer.Argument(metavar="MODEL|RECIPE.yaml", help="A Hugging Face directory, or a recipe with lists in it.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The sweep's directory; run again to resume.")],
    *,
    allocator: Annotated[str | None, typer.Option(help="Comma-separated. [default: alpha,uniform]")] = None,
    sparsity: Annotated[str | None, typer.Option(help="Fractions of zeros. [default: 0.5,0.6,0.7,0.8]")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="unstructured, and N:M with N weights kept of M. [default: unstructured]")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16, int8, int4. [default: float32]")
    ] = None,
    engines: Annotated[
        str | None, typer.Option("--engine", "--engines", help="That run the cut packages. [default: tailcut]")
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            "--baselines",
            help="That run the dense model in bits of their own, or none. [default: onnxruntime-int8,onnxruntime-int4]",
        ),
    ] = None,
    pruner: Annotated[str | None, typer.Option(help="As in `tailcut compress`. [default: wanda]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda, for cutting. [default: auto]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each engine. [default: all cores]")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Prefill length. [default: 64]")] = None,
    context: Annotated[int | None, typer.Option(help="KV cache length while decoding. [default: 256]")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Decode steps a block. [default: 32]")] = None,
    blocks: Annotated[int | None, typer.Option(help="Blocks of two visits to every row. [default: 8]")] = None,
    text: Annotated[str | None, typer.Option(help="Perplexity text: demo or a file. [default: demo]")] = None,
    text_context: Annotated[int | None, typer.Option(help="Perplexity window, tokens. [default: 512]")] = None,
    windows: Annotated[int | None, typer.Option(help="Windows scored; 0 for the whole text. [default: 40]")] = None,
    max_ppl_ratio: Annotated[
        float | None, typer.Option(help="Recommend the fastest whose perplexity over dense stays below this.")
    ] = None,
    drawn: CalibrationText,
    stored: StoreFile,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep every model and package; needs the disk for them.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Measure again what could not be measured before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Measure a grid of cut models beside the dense ones on this machine; interrupted sweeps go on where they were.

    Leaves sweep.md (table, recommendation), pareto.svg, sweep.json and every raw sample in points/ and the results
    store. Other settings of `tailcut run` go into the recipe.
    """
    flags: dict[str, Any] = {name: value for name, value in locals().items() if name not in _OWN and value is not None}
    grid = read_grid(source, drawn.given | _parsed(flags))
    from tailcut.bench.sweep_report import summarise, write_sweep
    from tailcut.sweep import require_points, sweep

    store = stored.open()
    with console() as report:
        swept = sweep(grid, out, keep=keep, retry=retry, record=store.append, report=report)
    require_points(swept.points)
    summary = summarise(swept.points, swept.absent, grid.recipe.max_ppl_ratio)
    why_not = write_sweep(out, swept.points, summary)
    if json:
        print(codec.to_json(summary), end="")
        return
    for row in summary.rows:
        print(_line(row))
    decided = (sentence for sentence in summary.findings if "On this machine" in sentence)
    for sentence in filter(None, (*decided, *summary.recommendation, why_not)):
        print(sentence)
    print(f"report: {out / 'sweep.md'}")


def _parsed(flags: dict[str, Any]) -> dict[str, Any]:
    lists: dict[str, Any] = {name: split_words(flags[name]) for name in _WORDS if name in flags}
    if "sparsity" in flags:
        lists["sparsity"] = split_numbers(flags["sparsity"])
    if flags.get("windows") == 0:
        lists["windows"] = None  # the whole text
    return flags | lists


def _line(row: Any) -> str:  # noqa: ANN401  (a row of a summary)
    def number(name: str) -> str:
        low, value, high = (
            row[f"{name}_low"],
            row[f"{name}_ratio" if name == "perplexity" else name],
            row[f"{name}_high"],
        )
        return f"{value:.3f} [{low:.3f}, {high:.3f}]" if value is not None else "not measured"

    mark = "*" if row["nothing_better"] else " "
    note = f"  ({row['reason']})" if row["reason"] else ""
    return f"{mark} {row['label']:<42} speed x{number('speedup'):<24} perplexity x{number('perplexity')}{note}"
