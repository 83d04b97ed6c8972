"""`tailcut report`: Markdown and one self-contained HTML file from the files of a run."""

from pathlib import Path
from typing import Annotated

import typer

from tailcut import codec
from tailcut.allocation import LayerScores
from tailcut.errors import InputError
from tailcut.manifest import try_manifest


def command(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN_DIR]", help="A directory of `tailcut run`.")] = None,
    result: Annotated[Path | None, typer.Option(help="A result file. [default: RUN_DIR/result.json]")] = None,
    verdict: Annotated[Path | None, typer.Option(help="A verdict. [default: RUN_DIR/verdict.json if there]")] = None,
    scores: Annotated[Path | None, typer.Option(help="Layer scores. [default: RUN_DIR/scores.json if there]")] = None,
    spectra: Annotated[Path | None, typer.Option(help="Spectra. [default: RUN_DIR/spectra.npz if there]")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A directory with a manifest. [default: RUN_DIR/recovered, else RUN_DIR/model, else RUN_DIR/package]"
        ),
    ] = None,
    load: Annotated[
        Path | None, typer.Option(help="A result of `tailcut bench-load`. [default: RUN_DIR/load.json if there]")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write. [default: RUN_DIR]")] = None,
) -> None:
    """Write report.md and report.html: verdict, speed, load, quality, size, roofline, spectra, machine, provenance."""
    from tailcut.bench.load_file import read_load
    from tailcut.bench.report import write_report
    from tailcut.bench.spectra import read_spectra
    from tailcut.recovering import try_recovery
    from tailcut.results import BenchResult, Verdict

    base = run or output
    if base is None:
        raise InputError("name the run directory, or --result and --output")
    source = result or base / "result.json"
    verdict = verdict or _there(base / "verdict.json")
    scores = scores or _there(base / "scores.json")
    spectra = spectra or _there(base / "spectra.npz")
    load = load or _there(base / "load.json")
    model = model or next((base / name for name in ("recovered", "model", "package") if (base / name).is_dir()), None)
    written = write_report(
        output or base,
        result=codec.load(BenchResult, source),
        verdict=codec.load(Verdict, verdict) if verdict else None,
        scores=codec.load(LayerScores, scores) if scores else None,
        spectra=read_spectra(spectra) if spectra else None,
        manifest=try_manifest(model) if model else None,
        load=read_load(load) if load else None,
        recovery=try_recovery(model) if model else None,
    )
    for path in written:
        print(path)


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None
