"""GitHub annotations, as workflow commands on stdout: `tailcut gate ... --output github=-` in a step.

The runner (actions/runner, ActionCommand.cs) reads a command from any line that begins with "::". Each annotation here
is one line whose text is escaped by the runner's own table, so that a name cannot end its line, add a property or
begin a command of its own. A check that passes is not announced: GitHub keeps ten annotations a step.
"""

from tailcut.bench.load_values import LoadResult
from tailcut.bench.text import one_line
from tailcut.results import BenchResult, Verdict

HELP = "annotations of a GitHub workflow, written to stdout"
_LEVELS = {"pass": "notice", "fail": "error", "inconclusive": "warning"}


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    lines = [
        _annotation(_LEVELS[check.outcome], f"tailcut gate: {check.name}: {check.outcome}", check.sentence)
        for check in verdict.checks
        if check.outcome != "pass"
    ]
    lines.append(_annotation(_LEVELS[verdict.outcome], f"tailcut gate: {verdict.outcome}", verdict.note or "no note"))
    return "\n".join([*lines, ""])


def _annotation(level: str, title: str, message: str) -> str:
    return f"::{level} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    """one_line leaves no line end; the runner unescapes %0A, so the percent sign is what remains to escape."""
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
