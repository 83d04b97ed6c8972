"""`tailcut allocate`: from scores and a sparsity to a plan for every matrix."""

import inspect
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, cast

import typer

from tailcut import codec
from tailcut.allocation import Allocation, Budget, LayerScores, parse_bits, parse_nm
from tailcut.commands._options import CalibrationText, Planning, expanded
from tailcut.cost import CostTable
from tailcut.errors import InputError
from tailcut.files import require_absent
from tailcut.progress import console, tables

if TYPE_CHECKING:
    from tailcut.compress.searches import Task
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


@expanded
def command(
    scores: Annotated[Path, typer.Argument(help="What `tailcut measure` wrote.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where to write the allocation (JSON).")] = Path(
        "allocation.json"
    ),
    *,
    planning: Planning,
    precision: Annotated[str | None, typer.Option(help="Which of the cost table's precisions, if several.")] = None,
    model: Annotated[Path | None, typer.Option(help="auto, evo: the model directory that was measured.")] = None,
    pruner: Annotated[str, typer.Option(help="auto, evo: what `tailcut compress` will cut with.")] = "wanda",
    quantiser: Annotated[
        str, typer.Option(help="auto, evo with --bits: what `tailcut compress` will round with.")
    ] = "gptq",
    text: CalibrationText,
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
    from tailcut.compress.searches import Effort, Task

    budget = _budget(planning)
    settings = Settings(
        **planning.shaping,
        cost=None if planning.cost is None else codec.load(CostTable, planning.cost),
        precision=cast("Precision | None", precision),
    )
    measured = codec.load(LayerScores, scores)
    by_default = "alpha" if planning.speedup is None else "latency"
    chosen = plugins.require(PACKAGE, planning.allocator or by_default, searches.PACKAGE)
    minutes, evaluations = planning.minutes, planning.evaluations
    if searches.is_search(chosen):
        searches.require_searchable(chosen, budget, settings)
        effort = Effort.asked(minutes, evaluations)
        task = Task(
            _cuttable(chosen, model),
            measured,
            budget,
            pruner,
            text.wanted,
            effort,
            device,
            _trace(out),
            quantiser,
            settings,
        )
        allocation = _search(chosen, task, plot)
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


def _cuttable(name: str, model: Path | None) -> Path:
    if model is None:
        raise InputError(f"--allocator {name} cuts the model to see what that costs; give its directory with --model")
    return model


def _trace(out: Path) -> Path:
    """Measurements of a search go to OUT with the ending .search.jsonl."""
    return out.with_name(f"{out.stem}.search.jsonl")


def _search(name: str, task: "Task", plot: Path | None) -> Allocation:
    from tailcut.compress.searches import _picture, search

    if plot is not None:
        _picture.require_drawable(plot)
    with console() as report:
        allocation = search(name, task, report)
    if plot is not None and task.trace is not None:
        _picture.draw(task.trace, allocation, task.scores, plot)
    return allocation


def _budget(planning: Planning) -> Budget:
    sparsity, bits, speedup = planning.sparsity, planning.bits, planning.speedup
    allowed = parse_bits(planning.bit_choices or "8,4,3,2")
    cap = 0.99 if planning.cap is None else planning.cap
    if planning.pattern is None:
        if sparsity is None and bits is None and speedup is None:
            raise InputError("say how much to cut: --sparsity 0.7, --pattern 2:4 with --allocator uniform, or --bits 4")
        return Budget(sparsity or 0.0, cap, None, bits, allowed, speedup)
    kept = parse_nm(planning.pattern)
    # a pattern's own sparsity is exact for every layer, so the cap that guards uneven plans does not apply
    wanted = kept.sparsity if sparsity is None else sparsity
    return Budget(wanted, max(cap, kept.sparsity), kept, bits, allowed, speedup)


def _show(scores: LayerScores, allocation: Allocation, out: Path) -> None:
    from rich.table import Table

    metric = allocation.provenance.get("metric")
    if any(metric not in layer.values for layer in scores.layers):
        metric = None  # a curve: no one number to show
    rounded = ["bits"] if "bits" in allocation.provenance else []
    table = Table("block", *([metric] if metric else []), "sparsity", "least", "most", *rounded)
    for block in sorted({layer.block for layer in scores.layers}):
        layers = [layer for layer in scores.layers if layer.block == block]
        cut = [allocation.plans[layer.name].pattern.sparsity for layer in layers]
        weights = [layer.parameters for layer in layers]
        mean = sum(s * n for s, n in zip(cut, weights, strict=True)) / sum(weights)
        bits = sum((allocation.plans[layer.name].bits or 0) * layer.parameters for layer in layers) / sum(weights)
        score = [f"{sum(layer.values[metric] for layer in layers) / len(layers):.4f}"] if metric else []
        table.add_row(
            str(block), *score, f"{mean:.4f}", f"{min(cut):.4f}", f"{max(cut):.4f}", *[f"{bits:.2f}" for _ in rounded]
        )
    tables().print(table)
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
    compared, known = int(said.get("candidates", "0")), int(said.get("candidates_known", "0"))
    if compared < known:
        print(
            f"only {compared} of {known} candidates could be compared in the time given; more --minutes choose better"
        )
