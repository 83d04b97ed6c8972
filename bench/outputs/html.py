"""The report's page on its own: verdict, speed, quality, plots; loads nothing, so it can be any CI's artifact."""

from tailcut.bench.page import html_page
from tailcut.results import BenchResult, Verdict

HELP = "one self-contained page with plots, for people"


def render(verdict: Verdict, result: BenchResult) -> str:
    return html_page(result, verdict)
