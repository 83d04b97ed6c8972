"""`tailcut allocate`: from scores and a sparsity to a plan for every matrix."""

import inspect
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tailcut import codec
from tailcut.allocation import Allocation, Budget, LayerScores, parse_bits, parse_nm
from tailcut.cost import CostTable
from tailcut.errors import InputError
from tailcut.files import require_absent
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.compress.allocators import Granularity, Solver
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.searches import Effort
    from tailcut.quantised import Precision


def _list(wanted: bool) -> None:
    if not wanted:
        return
    from tailcut import plugins
    from tailcut.compress import searches
    from tailcut.compress.allocators import PACKAGE, load

    for name in plugins.names(PACKAGE):
        allocator = load(name)
        scores, settings = ", ".join(allocator.METRICS) or "none", ", ".join(allocator.SETTINGS) or "none"
        _explain(f"{name}  (scores: {scores}; settings: {settings})", allocator.allocate)
    for name in plugins.names(searches.PACKAGE):
        scores = ", ".join(searches.load(name).METRICS) or "none"
        _explain(f"{name}  (a search, with --model; scores: any, such as {scores})", searches.load(name).search)
    raise typer.Exit


def _explain(head: str, function: Callable[..., Allocation]) -> None:
    text = " ".join((inspect.getdoc(function) or "").split())
    print(f"{head}\n" + fill(text, 110, initial_indent="    ", subsequent_indent="    ") + "\n")


def command(
    scores: Annotated[Path, typer.Argument(help="What `tailcut measure` wrote.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where to write the allocation (JSON).")] = Path(
        "allocation.json"
    ),
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of zeros over the linears of the decoder blocks, in [0, 1).")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="N:M with N weights kept of M, such as 2:4; with --allocator uniform.")
    ] = None,
    allocator: Annotated[
        str | None,
        typer.Option(
            help="How layers share the budget; --list explains each. [default: alpha; latency with --speedup]"
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="alpha: which of the measured scores [default: alpha_peak]; global: magnitude or wanda."),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(help="alpha: spread between layers. [default: 0.1 up to 50 %, 0.3 at 70 %, 0.2 from 80 % on]"),
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(help="alpha, als: block, matrix, or mixed (a block's budget shared out by matrix)."),
    ] = None,
    spread: Annotated[
        float | None, typer.Option(help="owl, dlp: half the width, in sparsity, of the range over blocks.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="atp: how much more each block loses than the one before.")] = None,
    compat: Annotated[
        bool, typer.Option("--compat", help="owl, dlp, atp: unweighted and unclipped, as published.")
    ] = False,
    solver: Annotated[str | None, typer.Option(help="als: lp (as published) or qp.")] = None,
    bounds: Annotated[
        tuple[float, float] | None, typer.Option(help="als: least and greatest sparsity.", metavar="LOW HIGH")
    ] = None,
    step: Annotated[float | None, typer.Option(help="als: sparsities are multiples of this.")] = None,
    group: Annotated[int | None, typer.Option(help="nm-mixed: M of N:M. [default: 8]")] = None,
    allow_dense: Annotated[bool, typer.Option("--allow-dense", help="nm-mixed: layers may lose nothing.")] = False,
    bits: Annotated[
        float | None, typer.Option(help="Mean bits a weight, beside any allocator; --sparsity is then 0 if left out.")
    ] = None,
    bit_choices: Annotated[str, typer.Option(help="Bits a layer may get, comma-separated.")] = "8,4,3,2",
    bit_tau: Annotated[
        float | None, typer.Option(help="Spread of the bits; 0 gives all layers the same. [default: 0.3]")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Decode speed over dense to reach, in place of a sparsity; with --cost.")
    ] = None,
    cost: Annotated[Path | None, typer.Option(help="What products cost here, from `tailcut cost`.")] = None,
    precision: Annotated[str | None, typer.Option(help="Which of the cost table's precisions, if several.")] = None,
    cap: Annotated[float, typer.Option(help="No matrix loses more than this fraction.")] = 0.99,
    model: Annotated[Path | None, typer.Option(help="auto, evo: the model directory that was measured.")] = None,
    pruner: Annotated[str, typer.Option(help="auto, evo: what `tailcut compress` will cut with.")] = "wanda",
    calibration: Annotated[str, typer.Option(help="auto, evo: demo, a .txt/.jsonl file, or datasets:NAME.")] = "demo",
    samples: Annotated[int, typer.Option(help="auto, evo: calibration sequences.")] = 32,
    seqlen: Annotated[int, typer.Option(help="auto, evo: tokens a sequence.")] = 512,
    seed: Annotated[int, typer.Option(help="auto, evo: of the calibration windows and of the search.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="auto, evo: time to take. [default: 10]")] = None,
    evaluations: Annotated[
        int | None,
        typer.Option(help="auto, evo: plans to measure, in place of minutes; the result is then always the same."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, evo: auto, cpu or cuda.")] = "auto",
    plot: Annotated[Path | None, typer.Option(help="auto, evo: a picture of the search (.svg or .png).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the allocation as JSON on stdout too.")] = False,
    list_all: Annotated[
        bool, typer.Option("--list", callback=_list, is_eager=True, help="Explain every allocator and leave.")
    ] = False,
) -> None:
    """Share a sparsity budget out over the layers: arithmetic on SCORES, or (auto, evo) a search that cuts the model.

    The budget is met exactly, weighted by parameters, and no matrix passes the cap. With the alpha allocator,
    matrices with lighter tails (higher alpha) lose more; --list explains the others. A search needs --model, writes its
    measurements beside OUTPUT as they are made, and goes on from there when run again. Next: `tailcut compress`.
    """
    if not overwrite:
        require_absent(out)
    from tailcut import plugins
    from tailcut.compress import searches
    from tailcut.compress.allocators import PACKAGE, Settings, allocate
    from tailcut.compress.calibration import Calibration
    from tailcut.compress.searches import Effort

    budget = _budget(sparsity, pattern, cap, bits, bit_choices, speedup)
    settings = Settings(
        metric=metric,
        tau=tau,
        granularity=cast("Granularity | None", granularity),
        spread=spread,
        beta=beta,
        compat=compat,
        solver=cast("Solver | None", solver),
        bounds=bounds,
        step=step,
        group=group,
        allow_dense=allow_dense,
        bit_tau=bit_tau,
        cost=None if cost is None else codec.load(CostTable, cost),
        precision=cast("Precision | None", precision),
    )
    measured = codec.load(LayerScores, scores)
    chosen = plugins.require(PACKAGE, allocator or ("alpha" if speedup is None else "latency"), searches.PACKAGE)
    if searches.is_search(chosen):
        searches.require_searchable(chosen, budget, settings)
        text = Calibration(calibration, samples, seqlen, seed)
        effort = Effort(10.0 if minutes is None and evaluations is None else minutes, evaluations)
        allocation = _search(chosen, model, measured, budget, (pruner, text, effort, device), out, plot)
    else:
        _refuse(chosen, {"model": model, "minutes": minutes, "evaluations": evaluations, "plot": plot})
        allocation = allocate(chosen, measured, budget, settings)
    codec.save(allocation, out)
    if json:
        print(codec.to_json(allocation), end="")
    else:
        _show(measured, allocation, out)


def _refuse(allocator: str, options: dict[str, object]) -> None:
    """Options of a search make no sense where nothing is searched."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name} belongs to a search; --allocator {allocator} is arithmetic: leave it out")


def _search(
    name: str,
    model: Path | None,
    scores: LayerScores,
    budget: Budget,
    how: tuple[str, "Calibration", "Effort", str],
    out: Path,
    plot: Path | None,
) -> Allocation:
    """`how`: pruner, calibration, effort, device. Measurements go to OUT with the ending .search.jsonl."""
    from tailcut.compress.searches import Task, _picture, search

    if model is None:
        raise InputError(f"--allocator {name} cuts the model to see what that costs; give its directory with --model")
    if plot is not None:
        _picture.require_drawable(plot)
    trace = out.with_name(f"{out.stem}.search.jsonl")
    with console() as report:
        allocation = search(name, Task(model, scores, budget, *how, trace), report)
    if plot is not None:
        _picture.draw(trace, allocation, scores, plot)
    return allocation


def _budget(
    sparsity: float | None, pattern: str | None, cap: float, bits: float | None, choices: str, speedup: float | None
) -> Budget:
    allowed = parse_bits(choices)
    if pattern is None:
        if sparsity is None and bits is None and speedup is None:
            raise InputError("say how much to cut: --sparsity 0.7, or --pattern 2:4 with --allocator uniform")
        return Budget(sparsity or 0.0, cap, None, bits, allowed, speedup)
    kept = parse_nm(pattern)
    # a pattern's own sparsity is exact for every layer, so the cap that guards uneven plans does not apply
    wanted = kept.sparsity if sparsity is None else sparsity
    return Budget(wanted, max(cap, kept.sparsity), kept, bits, allowed, speedup)


def _show(scores: LayerScores, allocation: Allocation, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    metric = allocation.provenance.get("metric")
    if any(metric not in layer.values for layer in scores.layers):
        metric = None  # a curve: no one number to show
    table = Table("block", *([metric] if metric else []), "sparsity", "least", "most")
    for block in sorted({layer.block for layer in scores.layers}):
        layers = [layer for layer in scores.layers if layer.block == block]
        cut = [allocation.plans[layer.name].pattern.sparsity for layer in layers]
        weights = [layer.parameters for layer in layers]
        mean = sum(s * n for s, n in zip(cut, weights, strict=True)) / sum(weights)
        score = [f"{sum(layer.values[metric] for layer in layers) / len(layers):.4f}"] if metric else []
        table.add_row(str(block), *score, f"{mean:.4f}", f"{min(cut):.4f}", f"{max(cut):.4f}")
    Console().print(table)
    prunable = {layer.name: layer.parameters for layer in scores.layers}
    overall = allocation.sparsity(prunable)
    whole = overall * sum(prunable.values()) / max(1, scores.total_parameters)
    print(f"{out}: sparsity {overall:.4f} over the block linears, {whole:.4f} over the whole model")
    said = allocation.provenance
    if "predicted_ms" in said:
        speed, dense = float(said["predicted_speedup"]), said["dense_ms"]
        print(f"predicted: {said['predicted_ms']} ms a step against {dense} dense, {speed:.3f} times as fast")
    shown = ("patterns", "patterns"), ("two_four", "hardware"), ("bit_counts", "bits"), ("winner", "winner")
    for key, words in (*shown, ("finals", "KL of the finalists")):
        if key in said:
            print(f"{words}: {said[key]}")
