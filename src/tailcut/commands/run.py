"""`tailcut run`: the whole street, from a model directory to a verdict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailcut import codec
from tailcut.allocation import parse_bits
from tailcut.commands._options import CalibrationText, Planning, expanded
from tailcut.progress import console
from tailcut.recipe import Recipe, make_recipe, read_recipe, with_paths
from tailcut.recovering import parse_methods

if TYPE_CHECKING:
    from tailcut.results import Verdict


# parameters of the command that are no fields of a recipe, or stand for several
_OWN = ("source", "out", "planning", "drawn", "json")


@expanded
def command(
    source: Annotated[str, typer.Argument(metavar="MODEL|RECIPE.yaml", help="A Hugging Face directory, or a recipe.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The run directory; run again to resume.")],
    planning: Planning,
    drawn: CalibrationText,
    structured: Annotated[
        float | None, typer.Option(help="Fraction of the weights that goes first, as whole heads and MLP channels.")
    ] = None,
    importance: Annotated[str | None, typer.Option(help="As in `tailcut structured`. [default: taylor]")] = None,
    pruner: Annotated[str | None, typer.Option(help="As in `tailcut compress`. [default: wanda]")] = None,
    quantiser: Annotated[
        str | None, typer.Option(help="rtn, gptq or joint, of layers with bits. [default: gptq]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda. [default: auto]")] = None,
    forward: Annotated[
        str | None, typer.Option(help="Passes over calibration text: float32 or bfloat16. [default: float32]")
    ] = None,
    recover: Annotated[
        str | None, typer.Option(help="As --method of `tailcut recover`. [default: least-squares,distill, given text]")
    ] = None,
    recover_text: Annotated[
        list[Path] | None, typer.Option(help="Text to recover the cut model with; may be given several times.")
    ] = None,
    recover_budget: Annotated[str | None, typer.Option(help="Time or steps of the recovery. [default: 20m]")] = None,
    weights: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16, int8 or int4, of both packages. [default: float32]")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Head and embedding: float32, int8 or int4. [default: as the weights]")
    ] = None,
    activation_bits: Annotated[
        int | None, typer.Option(help="Activations of int8 and int4 matrices in the kernels: 8 or 16. [default: 8]")
    ] = None,
    kv_cache: Annotated[
        str | None,
        typer.Option(help="Keys and values: float32 or float16. [default: float32 for float32 weights, else float16]"),
    ] = None,
    engines: Annotated[
        str | None, typer.Option(help="Comma-separated; the first is judged. [default: tailcut,onnxruntime]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each engine. [default: all cores]")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Prefill length. [default: 64]")] = None,
    context: Annotated[int | None, typer.Option(help="KV cache length while decoding. [default: 256]")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Decode steps a block. [default: 32]")] = None,
    blocks: Annotated[
        int | None, typer.Option(help="ABBA blocks, where none of the next three decides. [default: 8]")
    ] = None,
    at_least: Annotated[
        float | None, typer.Option(help="Stop a bench when the speedup is clear of this, on either side.")
    ] = None,
    precision: Annotated[
        float | None, typer.Option(help="Stop when the speedup is known within this share, such as 0.02.")
    ] = None,
    bench_minutes: Annotated[
        float | None,
        typer.Option(
            help="Stop the decode blocks of an engine after so long; alone, also when the speedup is clear of the gate's."
        ),
    ] = None,
    min_blocks: Annotated[int | None, typer.Option(help="With these three: blocks at least. [default: 4]")] = None,
    max_blocks: Annotated[int | None, typer.Option(help="With these three: blocks at most. [default: 32]")] = None,
    text: Annotated[str | None, typer.Option(help="Perplexity text: demo or a file. [default: demo]")] = None,
    text_context: Annotated[int | None, typer.Option(help="Perplexity window, tokens. [default: 512]")] = None,
    windows: Annotated[int | None, typer.Option(help="Windows scored; 0 for the whole text. [default: 40]")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Gate: decode speedup over dense must clear this.")] = None,
    max_ppl_ratio: Annotated[
        float | None, typer.Option(help="Gate: perplexity over dense must stay below this.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Gate: a policy file (YAML), see docs/gate.md.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON on stdout.")] = False,
) -> None:
    """Compress, export, bench against dense and gate MODEL; interrupted runs go on where they were.

    Exit code: 0 pass, 1 gate failed, 2 bad usage or input, 3 inconclusive, 4 environment.
    """
    rest = {name: value for name, value in locals().items() if name not in _OWN}
    given = planning.given | drawn.given | {name: value for name, value in rest.items() if value is not None}
    recipe = with_paths(_recipe(source, given))
    from tailcut.pipeline import run

    with console() as report:
        verdict = run(recipe, out, report)
    if json:
        print(codec.to_json(verdict), end="")
    else:
        _show(verdict, out)
    raise typer.Exit(verdict.exit_code)


def _recipe(source: str, given: dict[str, Any]) -> Recipe:
    if "engines" in given:
        given["engines"] = [name.strip() for name in given["engines"].split(",") if name.strip()]
    if "bit_choices" in given:
        given["bit_choices"] = parse_bits(given["bit_choices"])
    if "recover" in given:
        given["recover"] = list(parse_methods(given["recover"]))
    if "recover_text" in given:
        given["recover_text"] = [str(path) for path in given["recover_text"]]
    for name in ("cost", "policy"):
        if name in given:
            given[name] = str(given[name])
    if "speedup" in given:
        given.setdefault("allocator", "latency")
    if given.get("windows") == 0:
        given["windows"] = None
    if source.endswith((".yaml", ".yml")):
        return read_recipe(Path(source), given)
    return make_recipe(given | {"model": source}, "options")


def _show(verdict: "Verdict", out: Path) -> None:
    from tailcut.bench.report import summary
    from tailcut.results import BenchResult

    summary(codec.load(BenchResult, out / "result.json"), verdict)
    print(f"report: {out / 'report.html'}")
