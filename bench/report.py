"""The report of a run: tables on the console, Markdown for a pull request, and the HTML page of `page`.

Every text in it is escaped: model names, notes and reasons come from files.
"""

from collections.abc import Sequence
from pathlib import Path

from tailcut import __version__, progress
from tailcut.allocation import LayerScores
from tailcut.bench import tables
from tailcut.bench.load_tables import load_tables
from tailcut.bench.load_values import LoadResult
from tailcut.bench.page import Spectra, caveats, html_page, provenance_table, title_of, verdict_line
from tailcut.bench.recovery_plots import recovery_table
from tailcut.bench.tables import Table
from tailcut.bench.text import one_line
from tailcut.files import write_file
from tailcut.manifest import Manifest
from tailcut.results import BenchResult, RecoveryResult, Verdict


def summary(result: BenchResult, verdict: Verdict | None) -> None:
    """Print the tables that matter to stdout."""
    from rich.table import Table as RichTable
    from rich.text import Text

    console = progress.tables()
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
    load: LoadResult | None = None,
    recovery: RecoveryResult | None = None,
) -> tuple[Path, Path]:
    """Write report.md and report.html into `out_dir`; their paths."""
    page = html_page(result, verdict, scores=scores, spectra=spectra, manifest=manifest, load=load, recovery=recovery)
    text = markdown_report(result, verdict, manifest, load, recovery)
    markdown, html = out_dir / "report.md", out_dir / "report.html"
    write_file(markdown, text.encode())
    write_file(html, page.encode())
    return markdown, html


def markdown_report(
    result: BenchResult,
    verdict: Verdict | None,
    manifest: Manifest | None,
    load: LoadResult | None = None,
    recovery: RecoveryResult | None = None,
) -> str:
    """Every table of the page, as Markdown."""
    lines = [f"# {escape_markdown(title_of(manifest))}", ""]
    lines += [f"Verdict: **{escape_markdown(verdict_line(verdict))}**", ""]
    for table in [*_tables(result, verdict, manifest, load), *([recovery_table(recovery)] if recovery else [])]:
        lines += [f"## {escape_markdown(table.title)}", "", markdown_table(table), ""]
        lines += [escape_markdown(table.note), ""] if table.note else []
    notes = caveats(result, manifest, load)
    if notes:
        lines += ["## Caveats", "", *(f"- {escape_markdown(note)}" for note in notes), ""]
    return "\n".join([*lines, f"Made by tailcut {__version__}. Raw samples: result.json.", ""])


def _tables(
    result: BenchResult, verdict: Verdict | None, manifest: Manifest | None, load: LoadResult | None
) -> list[Table]:
    found = [tables.checks_table(verdict)] if verdict is not None and verdict.checks else []
    found.append(tables.speed_table(result))
    found += load_tables(load) if load is not None else []
    if result.quality:
        found.append(tables.quality_table(result.quality))
    found += [tables.size_table(result), tables.roofline_table(result), tables.evidence_table(result)]
    found += [one for one in (tables.procedure_table(result), tables.machine_table(result)) if one.rows]
    return [*found, provenance_table(manifest)] if manifest is not None else found


def markdown_table(table: Table) -> str:
    """A table's header and rows; every cell escaped."""
    rule = "|" + " --- |" * len(table.header)
    return "\n".join([markdown_row(table.header), rule, *(markdown_row(row) for row in table.rows)])


def markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |"


def escape_markdown(text: str) -> str:
    """Text that cannot become Markdown structure or HTML."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "`", "*", "_", "[", "]", "|", "#"):
        escaped = escaped.replace(mark, f"\\{mark}")
    return one_line(escaped)
