"""A job's summary: the verdict, every check with its reason, then speed, quality and size.

For `$GITHUB_STEP_SUMMARY`, a merge request's note or a chat. The mark beside each outcome has a shape of its own:
nothing is said by colour alone.
"""

from collections.abc import Sequence

from tailcut.bench import tables
from tailcut.bench.load_tables import load_tables
from tailcut.bench.load_values import LoadResult
from tailcut.bench.page import caveats
from tailcut.bench.report import escape_markdown, markdown_table
from tailcut.bench.tables import Table
from tailcut.results import BenchResult, Verdict

HELP = "a summary for a job, a merge request or a chat"
MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    checks = Table("", ("", "check", "why"), tuple(_row(*row) for row in tables.checks_table(verdict).rows))
    numbers = [tables.speed_table(result), tables.size_table(result)]
    if result.quality:
        numbers.insert(1, tables.quality_table(result.quality))
    numbers += load_tables(load) if load is not None else []
    parts = [
        f"## {MARKS[verdict.outcome]} tailcut gate: {verdict.outcome}",
        escape_markdown(verdict.note),
        markdown_table(checks) if checks.rows else "Nothing was judged.",
        *(f"### {escape_markdown(table.title)}\n\n{markdown_table(table)}" for table in numbers),
        *_caveats(caveats(result, None, load)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(outcome: str, name: str, sentence: str) -> tuple[str, str, str]:
    return (f"{MARKS[outcome]} {outcome}", name, sentence)


def _caveats(sentences: Sequence[str]) -> list[str]:
    notes = [f"- {escape_markdown(note)}" for note in sentences]
    return ["<details><summary>Caveats</summary>", "\n".join(notes), "</details>"] if notes else []
