"""The HTML page of a report: one file that loads nothing, reads on a phone, in the dark and without colour.

The verdict comes first, then the numbers it hangs on, the checks, and only then what explains them. Every text is
escaped by the template: model names, notes and reasons come from files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailcut import __version__
from tailcut.allocation import LayerScores
from tailcut.bench import plan_plots, plots, tables
from tailcut.bench.load_plots import of_load
from tailcut.bench.load_tables import load_notes, load_tables
from tailcut.bench.load_values import LoadResult
from tailcut.bench.plots import Drawn
from tailcut.bench.recovery_plots import of_recovery, recovery_table
from tailcut.bench.tables import Table
from tailcut.bench.text import one_line
from tailcut.errors import MissingEnvironmentError
from tailcut.manifest import Manifest
from tailcut.results import BenchResult, EngineResult, RecoveryResult, Verdict

Spectra = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the page: what it shows, and whether it starts folded."""

    title: str
    tables: Sequence[Table] = ()
    figures: Sequence[Drawn] = ()
    strips: Sequence[Drawn] = ()  # panels of each decoder block
    intro: str = ""
    folded: bool = False
    plots_first: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """One number that the verdict hangs on, with what it was before and how sure it is."""

    name: str
    value: str
    detail: str


def html_page(
    result: BenchResult,
    verdict: Verdict | None = None,
    *,
    scores: LayerScores | None = None,
    spectra: Spectra | None = None,
    manifest: Manifest | None = None,
    load: LoadResult | None = None,
    recovery: RecoveryResult | None = None,
) -> str:
    """The whole page; the same values give the same bytes."""
    return _rendered(
        title=title_of(manifest),
        outcome=verdict.outcome if verdict is not None and verdict.checks else "none",
        note=verdict.note if verdict is not None else "no limits were given",
        tiles=_tiles(result, verdict),
        checks=verdict.checks if verdict is not None else (),
        sections=[
            *_measured(result, load),
            *_recovered(recovery),
            *_planned(scores, spectra, manifest),
            *_background(result, manifest),
        ],
        notes=caveats(result, manifest, load),
        version=__version__,
    )


def _rendered(**values: object) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise MissingEnvironmentError("reports need jinja2; install tailcut[report]") from error
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,  # runs before escaping
    )
    page: str = environment.get_template("report.html.j2").render(**values)
    return page


def _printable(value: object) -> object:
    """A text without control characters; what a macro has already escaped stays as it is."""
    return one_line(value) if type(value) is str else value


def title_of(manifest: Manifest | None) -> str:
    name = manifest.source.get("name", "") if manifest else ""
    return f"tailcut report: {name}" if name else "tailcut report"


def verdict_line(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged"
    return f"{verdict.outcome if verdict.checks else 'not judged'} ({verdict.note})"


def caveats(result: BenchResult, manifest: Manifest | None, load: LoadResult | None = None) -> tuple[str, ...]:
    found = [*tables.caveats(result), *(manifest.notes if manifest else ())]
    if load is not None:
        found += [f"under load: {note}" for note in load_notes(load)]
        if load.machine.fingerprint != result.machine.fingerprint:
            found.append(f"the load was measured on another machine than the rest: {load.machine.cpu}")
        if (load.dense.sha256, load.sparse.sha256) != (result.dense.sha256, result.sparse.sha256):
            found.append("the load was measured with other packages than the rest")
    return tuple(dict.fromkeys(found))


def provenance_table(manifest: Manifest) -> Table:
    facts: list[tuple[str, str]] = [("made by", manifest.made_by)]
    facts += [(f"source {key}", value) for key, value in manifest.source.items()]
    facts += [(key, value) for key, value in manifest.provenance.items()]
    facts += [(key, str(value)) for key, value in manifest.details.items()]
    return Table("Provenance", ("", ""), tuple(facts))


def _tiles(result: BenchResult, verdict: Verdict | None) -> list[Tile]:
    """Speed of the judged engine, quality, size and sparsity."""
    ran = plots.measured(result)
    names = verdict.engine.split(", ") if verdict is not None else []  # a gate may judge several
    judged = next((engine for engine in ran if engine.engine in names), None)
    found = _speed_tiles(judged or ran[0]) if ran else []
    for quality in result.quality[:1]:
        change = f"{quality.dense_perplexity:.2f} to {quality.sparse_perplexity:.2f} on {quality.text}"
        ratio = quality.ratio
        found.append(Tile("perplexity", f"{ratio.value:.2f}×", f"{ratio.low:.2f} to {ratio.high:.2f}; {change}"))
    dense, sparse = result.dense.bytes_on_disk, result.sparse.bytes_on_disk
    if dense:
        found.append(Tile("package", f"{sparse / dense:.2f}×", f"{dense / 1e6:.1f} to {sparse / 1e6:.1f} MB"))
    whole = f"of the blocks' weights are zero; {result.sparse.whole_model_sparsity:.1%} of all"
    return [*found, Tile("sparsity", f"{result.sparse.sparsity:.1%}", whole)]


def _speed_tiles(engine: EngineResult) -> list[Tile]:
    found = []
    for name, ratio in (("decode speed", engine.decode_speedup), ("prefill speed", engine.prefill_speedup)):
        if ratio is not None:
            sure = f"{ratio.low:.2f} to {ratio.high:.2f} at {ratio.confidence:.0%}; {engine.engine}"
            found.append(Tile(name, f"{ratio.value:.2f}×", sure))
    if engine.dense is not None and engine.sparse is not None:
        before = f"tokens a second; dense {engine.dense.tokens_per_second:.1f}"
        found.insert(1, Tile("throughput", f"{engine.sparse.tokens_per_second:.1f}", before))
    return found


def _measured(result: BenchResult, load: LoadResult | None) -> list[Section]:
    quality = [tables.quality_table(result.quality)] if result.quality else []
    speed = [tables.speed_table(result), *_filled(tables.procedure_table(result))]
    found = [Section("Speed", speed, plots.of_latency(result))]
    if load is not None:
        found.append(Section("Under load", load_tables(load), of_load(load), plots_first=True))
    if quality:
        found.append(Section("Quality", quality, plots.of_quality(result)))
    roofline = [tables.roofline_table(result), tables.evidence_table(result)]
    found.append(Section("What memory allows", roofline, plots.of_roofline(result)))
    return [*found, Section("Size", [tables.size_table(result)])]


def _recovered(recovery: RecoveryResult | None) -> list[Section]:
    return [Section("Recovery", [recovery_table(recovery)], of_recovery(recovery))] if recovery is not None else []


def _filled(table: Table) -> list[Table]:
    return [table] if table.rows else []


def _planned(scores: LayerScores | None, spectra: Spectra | None, manifest: Manifest | None) -> list[Section]:
    figures = [*(plan_plots.of_scores(scores) if scores else ()), *(plan_plots.of_plan(manifest) if manifest else ())]
    found = [Section("The plan, matrix by matrix", (), figures)] if figures else []
    strips = plan_plots.of_spectra(scores, spectra) if scores is not None and spectra else []
    if strips:
        intro = (
            "Eigenvalue density of each matrix's WᵀW on log-log axes; the line and its exponent are the fitted power "
            "law from its tail start on."
        )
        found.append(Section("Spectra with the fitted tail", (), (), strips, intro))
    return found


def _background(result: BenchResult, manifest: Manifest | None) -> list[Section]:
    found = [Section("Machine", [tables.machine_table(result)], folded=True)]
    return [*found, Section("Provenance", [provenance_table(manifest)], folded=True)] if manifest is not None else found
