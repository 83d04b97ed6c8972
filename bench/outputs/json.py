"""The verdict as tailcut reads it again: every check with its value, interval, limit and sentence."""

from tailcut import codec
from tailcut.bench.load_values import LoadResult
from tailcut.results import BenchResult, Verdict

HELP = "the verdict itself, for `tailcut report` and scripts"


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    return codec.to_json(verdict)
