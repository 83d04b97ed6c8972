"""`tailcut measure`: scores of every matrix of a model, from its spectrum, its weights or what goes into it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.commands._options import CalibrationText, expanded
from tailcut.errors import InputError
from tailcut.files import require_absent
from tailcut.progress import console, tables

if TYPE_CHECKING:
    from tailcut.allocation import LayerScores


def _list_metrics(wanted: bool) -> None:
    """The callback of --list: every metric with the first paragraph of its file."""
    if not wanted:
        return
    from rich.table import Table

    from tailcut import plugins
    from tailcut.compress.metrics import PACKAGE, load_metrics

    table = Table("metric", "looks at", "larger means", "what it is")
    for name, metric in load_metrics(plugins.names(PACKAGE)).items():
        means = "prune more" if metric.SIGN > 0 else "prune less"
        table.add_row(name.replace("_", "-"), metric.NEEDS, means, _first_paragraph(metric))
    tables().print(table)
    raise typer.Exit


def _first_paragraph(metric: object) -> str:
    return " ".join((metric.__doc__ or "").split("\n\n")[0].split())


@expanded
def command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory with safetensors weights.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where to write the scores (JSON).")] = Path(
        "scores.json"
    ),
    spectra: Annotated[Path | None, typer.Option(help="Also write every matrix's eigenvalues here (.npz).")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Comma-separated or repeated; --list shows them all. [default: alpha-peak]"),
    ] = None,
    *,
    text: CalibrationText,
    outlier: Annotated[float, typer.Option(help="owl: an importance above this many times the mean is one.")] = 5.0,
    tokens: Annotated[int, typer.Option(help="als: how many calibration tokens are compared.")] = 512,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Cache of eigenvalues by content. [default: ~/.cache/tailcut/spectra]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the outputs if they exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON on stdout too.")] = False,
    every: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list_metrics, help="Show the metrics and stop.")
    ] = False,
) -> None:
    """Score every matrix in the decoder blocks of MODEL, one at a time: by default, how heavy its spectrum's tail is.

    A lower alpha means a heavier tail: a better trained layer, to be pruned less. Eigenvalues are cached by the
    matrix's content, so measuring again, or with another metric, takes seconds. Metrics that look at inputs (owl, dlp,
    als, wanda) run calibration text through the dense model, block by block. Next: `tailcut allocate`.
    """
    if not overwrite:
        for path in (out, spectra):
            if path is not None:
                require_absent(path)
    from tailcut.compress.measure import measure, save_spectra
    from tailcut.compress.metrics import Options

    names = [name.strip() for words in metric or ["alpha_peak"] for name in words.split(",") if name.strip()]
    _require_spectra(names, spectra)
    with console(quiet=json) as report:
        measured = measure(
            model,
            metrics=names,
            device=device,
            cache=cache,
            calibration=text.wanted,
            options=Options(outlier, tokens),
            report=report,
        )
    if spectra is not None:
        save_spectra(measured.spectra, spectra)
    codec.save(measured.scores, out)
    if json:
        print(codec.to_json(measured.scores), end="")
    else:
        _show(measured.scores, out)


def _require_spectra(names: list[str], spectra: Path | None) -> None:
    from tailcut.compress.metrics import load_metrics

    if spectra is not None and not any(metric.NEEDS == "spectrum" for metric in load_metrics(names).values()):
        raise InputError(f"--spectra needs a metric of the spectrum, {', '.join(names)} is none; add alpha-peak")


def _show(scores: "LayerScores", out: Path) -> None:
    from rich.table import Table

    metrics = scores.measured["metrics"].split(",")
    blocks: dict[int, list[dict[str, float]]] = {}
    for layer in scores.layers:
        blocks.setdefault(layer.block, []).append(dict(layer.values))
    table = Table("block", *metrics, title="mean over each block's matrices")
    for block, members in sorted(blocks.items()):
        table.add_row(str(block), *(f"{sum(m[name] for m in members) / len(members):.4f}" for name in metrics))
    tables().print(table)
    print(f"{out}: {len(scores.layers)} matrices")
