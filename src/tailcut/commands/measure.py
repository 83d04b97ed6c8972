"""`tailcut measure`: how heavy the tails of a model's weight spectra are."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailcut import codec
from tailcut.files import require_absent
from tailcut.progress import console

if TYPE_CHECKING:
    from tailcut.allocation import LayerScores


def command(
    model: Annotated[Path, typer.Argument(help="A Hugging Face directory with safetensors weights.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where to write the scores (JSON).")] = Path(
        "scores.json"
    ),
    spectra: Annotated[Path | None, typer.Option(help="Also write every matrix's eigenvalues here (.npz).")] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="alpha-peak, alpha-mid, alpha or alpha-peak-compat; repeatable. [default: alpha-peak]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")] = "auto",
    cache: Annotated[
        Path | None, typer.Option(help="Cache of eigenvalues by content. [default: ~/.cache/tailcut/spectra]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the outputs if they exist.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON on stdout too.")] = False,
) -> None:
    """Fit a power law to the spectrum of every matrix in the decoder blocks of MODEL, one matrix at a time.

    A lower alpha means a heavier tail: a better trained layer, to be pruned less. Eigenvalues are cached by the
    matrix's content, so measuring again, or with another metric, takes seconds. Next: `tailcut allocate`.
    """
    if not overwrite:
        for path in (out, spectra):
            if path is not None:
                require_absent(path)
    from tailcut.compress.measure import measure, save_spectra

    with console(quiet=json) as report:
        measured = measure(model, metrics=metric or ["alpha_peak"], device=device, cache=cache, report=report)
    if spectra is not None:
        save_spectra(measured.spectra, spectra)
    codec.save(measured.scores, out)
    if json:
        print(codec.to_json(measured.scores), end="")
    else:
        _show(measured.scores, out)


def _show(scores: "LayerScores", out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = scores.measured["metrics"].split(",")
    blocks: dict[int, list[dict[str, float]]] = {}
    for layer in scores.layers:
        blocks.setdefault(layer.block, []).append(dict(layer.values))
    table = Table("block", *metrics, title="mean over each block's matrices")
    for block, members in sorted(blocks.items()):
        table.add_row(str(block), *(f"{sum(m[name] for m in members) / len(members):.4f}" for name in metrics))
    Console().print(table)
    print(f"{out}: {len(scores.layers)} matrices")
