"""The report of a run: Markdown for a terminal or a pull request, and one HTML file that needs nothing else.

Every text in it is escaped: model names, notes and reasons come from files. Plots are embedded; the HTML loads
nothing from anywhere and reads on a phone.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tailcut import __version__
from tailcut.allocation import LayerScores
from tailcut.bench import plots, tables
from tailcut.bench.plots import Drawn
from tailcut.bench.tables import Table
from tailcut.errors import MissingEnvironmentError
from tailcut.files import write_file
from tailcut.manifest import Manifest
from tailcut.results import BenchResult, Verdict

Spectra = Mapping[str, npt.NDArray[np.float64]]


def summary(result: BenchResult, verdict: Verdict | None) -> None:
    """Print the tables that matter to stdout."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    # in a log there is no terminal to wrap for
    console = Console() if sys.stdout.isatty() else Console(width=130)
    for table in _console_tables(result, verdict):
        shown = RichTable(title=Text(table.title), title_justify="left")
        for name in table.header:
            shown.add_column(Text(name))
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)
    for sentence in tables.caveats(result):
        console.print(Text(f"note: {sentence}"))
    if verdict is not None:
        console.print(Text(f"verdict: {verdict.outcome} ({verdict.note})"))


def _console_tables(result: BenchResult, verdict: Verdict | None) -> list[Table]:
    found = [tables.speed_table(result), tables.roofline_table(result), tables.size_table(result)]
    if result.quality:
        found.append(tables.quality_table(result.quality))
    found.append(tables.evidence_table(result))
    if verdict is not None and verdict.checks:
        found.append(tables.checks_table(verdict))
    return found


def write_report(
    out_dir: Path,
    *,
    result: BenchResult,
    verdict: Verdict | None = None,
    scores: LayerScores | None = None,
    spectra: Spectra | None = None,
    manifest: Manifest | None = None,
) -> tuple[Path, Path]:
    """Write report.md and report.html into `out_dir`; their paths."""
    title = _title(manifest)
    sections, background = _sections(result, verdict), _background(result, manifest)
    figures = _plots(result, scores, spectra, manifest)
    notes = _caveats(result, manifest)
    markdown, html = out_dir / "report.md", out_dir / "report.html"
    write_file(markdown, _markdown(title, verdict, [*sections, *background], notes).encode())
    write_file(html, _html(title, verdict, (sections, background), figures, notes).encode())
    return markdown, html


def _title(manifest: Manifest | None) -> str:
    name = manifest.source.get("name", "") if manifest else ""
    return f"tailcut report: {name}" if name else "tailcut report"


def _caveats(result: BenchResult, manifest: Manifest | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*tables.caveats(result), *(manifest.notes if manifest else ()))))


def _sections(result: BenchResult, verdict: Verdict | None) -> list[Table]:
    found = [tables.checks_table(verdict)] if verdict is not None and verdict.checks else []
    found.append(tables.speed_table(result))
    if result.quality:
        found.append(tables.quality_table(result.quality))
    found += [tables.size_table(result), tables.roofline_table(result), tables.evidence_table(result)]
    return found


def _background(result: BenchResult, manifest: Manifest | None) -> list[Table]:
    return [tables.machine_table(result), *([_provenance(manifest)] if manifest is not None else [])]


def _provenance(manifest: Manifest) -> Table:
    facts: list[tuple[str, str]] = [("made by", manifest.made_by)]
    facts += [(f"source {key}", value) for key, value in manifest.source.items()]
    facts += [(key, value) for key, value in manifest.provenance.items()]
    facts += [(key, str(value)) for key, value in manifest.details.items()]
    return Table("Provenance", ("", ""), tuple(facts))


def _plots(
    result: BenchResult, scores: LayerScores | None, spectra: Spectra | None, manifest: Manifest | None
) -> list[Drawn]:
    figures = [*plots.of_speed(result)]
    if scores is not None:
        figures += plots.of_layers(scores, manifest)
    if scores is not None and spectra:
        figures += plots.of_spectra(scores, spectra)
    return figures


def _markdown(title: str, verdict: Verdict | None, sections: Sequence[Table], notes: Sequence[str]) -> str:
    lines = [f"# {_md(title)}", "", f"Verdict: **{_md(_verdict_line(verdict))}**", ""]
    for table in sections:
        lines += [f"## {_md(table.title)}", "", markdown_row(table.header), "|" + " --- |" * len(table.header)]
        lines += [markdown_row(row) for row in table.rows]
        lines += ["", _md(table.note), ""] if table.note else [""]
    if notes:
        lines += ["## Caveats", "", *(f"- {_md(note)}" for note in notes), ""]
    return "\n".join([*lines, f"Made by tailcut {__version__}. Raw samples: result.json.", ""])


def _verdict_line(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged"
    return f"{verdict.outcome if verdict.checks else 'not judged'} ({verdict.note})"


def markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_md(cell) for cell in cells) + " |"


def _md(text: str) -> str:
    """Text that cannot become Markdown structure or HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "`", "*", "_", "[", "]", "|", "#"):
        escaped = escaped.replace(mark, f"\\{mark}")
    return " ".join(escaped.split())


def _html(
    title: str,
    verdict: Verdict | None,
    sections: tuple[Sequence[Table], Sequence[Table]],
    figures: Sequence[Drawn],
    notes: Sequence[str],
) -> str:
    try:
        import jinja2
    except ImportError as error:
        raise MissingEnvironmentError("reports need jinja2; install tailcut[report]") from error
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page: str = environment.get_template("report.html.j2").render(
        title=title,
        outcome=verdict.outcome if verdict is not None and verdict.checks else "none",
        verdict=_verdict_line(verdict),
        sections=sections[0],
        background=sections[1],
        plots=figures,
        notes=notes,
        version=__version__,
    )
    return page
