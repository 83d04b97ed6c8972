"""github-action-benchmark's customBiggerIsBetter: speedups and tokens a second."""

from tailcut.bench.load_values import LoadResult
from tailcut.bench.outputs._series import series
from tailcut.results import BenchResult, Verdict

HELP = "github-action-benchmark, tool customBiggerIsBetter: speedups and tokens a second"


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    return series(verdict, result, bigger_is_better=True)
