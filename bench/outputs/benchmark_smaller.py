"""github-action-benchmark's customSmallerIsBetter: milliseconds, megabytes and the perplexity ratio."""

from tailcut.bench.load_values import LoadResult
from tailcut.bench.outputs._series import series
from tailcut.results import BenchResult, Verdict

HELP = "github-action-benchmark, tool customSmallerIsBetter: milliseconds, megabytes and the perplexity ratio"


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    return series(verdict, result, bigger_is_better=False)
