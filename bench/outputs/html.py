"""The report's page on its own: verdict, speed, quality, plots; loads nothing, so it can be any CI's artifact."""

from tailcut.bench.load_values import LoadResult
from tailcut.bench.page import html_page
from tailcut.results import BenchResult, Verdict

HELP = "one self-contained page with plots, for people"


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    return html_page(result, verdict, load=load)
