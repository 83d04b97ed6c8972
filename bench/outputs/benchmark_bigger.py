"""github-action-benchmark's customBiggerIsBetter: speedups and tokens a second."""

from tailcut.bench.outputs._series import series
from tailcut.results import BenchResult, Verdict

HELP = "github-action-benchmark, tool customBiggerIsBetter: speedups and tokens a second"


def render(verdict: Verdict, result: BenchResult) -> str:
    return series(verdict, result, bigger_is_better=True)
