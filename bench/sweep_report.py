"""What a sweep leaves to be read: sweep.md, pareto.svg and sweep.json in its directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tailcut import __version__, codec
from tailcut.bench.sweep_plots import pareto
from tailcut.bench.tables import interval
from tailcut.codec import FORBID_EXTRA
from tailcut.errors import MissingEnvironmentError
from tailcut.files import write_file
from tailcut.results import Ratio
from tailcut.sweep_advice import Advice, advise
from tailcut.sweep_points import REFERENCE, SweepPoint

_HEAD = ("weights gone", "stored as", "engine", "sparsity", "speed over dense", "tokens/s", "perplexity over dense",
         "MB on disk", "sparse kernel", "note")  # fmt: skip


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """sweep.json: the points without their raw samples (those are in points/ and in the store), and what they say."""

    __pydantic_config__: ClassVar = FORBID_EXTRA
    model: str
    cpu: str
    machine: str  # fingerprint
    reference: str
    rows: tuple[Mapping[str, str | float | bool | None], ...]
    absent: Mapping[str, str]  # engines that could not run here
    findings: tuple[str, ...]
    recommendation: tuple[str, ...]
    front: tuple[str, ...]
    made_by: str


def summarise(points: Sequence[SweepPoint], absent: Mapping[str, str], max_ppl_ratio: float | None) -> SweepSummary:
    """All that the points say. They are of one model on one machine, and there is at least one."""
    advice: Advice = advise(points, max_ppl_ratio)
    first = points[0]
    return SweepSummary(
        model=first.model,
        cpu=first.machine.cpu,
        machine=first.machine.fingerprint,
        reference=f"dense float32 ({REFERENCE})",
        rows=tuple(_row(point, point.label in advice.front) for point in points),
        absent=dict(absent),
        findings=advice.findings,
        recommendation=advice.recommendation,
        front=advice.front,
        made_by=f"tailcut {__version__} sweep",
    )


def _row(point: SweepPoint, on_front: bool) -> dict[str, str | float | bool | None]:
    speed, ratio = point.speedup, point.perplexity_ratio
    return {
        "label": point.label,
        "cut": point.cut,
        "weights": point.weights,
        "engine": point.engine,
        "sparsity": point.facts.sparsity if point.facts else None,
        "speedup": speed.value if speed else None,
        "speedup_low": speed.low if speed else None,
        "speedup_high": speed.high if speed else None,
        "tokens_per_second": point.tokens_per_second,
        "perplexity_ratio": ratio.value if ratio else None,
        "perplexity_low": ratio.low if ratio else None,
        "perplexity_high": ratio.high if ratio else None,
        "bytes_on_disk": float(point.bytes_on_disk),
        "sparse_kernel": point.sparse_kernel,
        "reason": point.reason or point.quality_reason,
        "nothing_better": on_front,
    }


def markdown(points: Sequence[SweepPoint], summary: SweepSummary, *, picture: bool) -> str:
    """The page: what to deploy, the table, what was found, how it was measured."""
    lines = [f"# Sweep of {summary.model} on {summary.cpu}", "", "## What to deploy", ""]
    lines += [f"- {sentence}" for sentence in summary.recommendation]
    lines += ["", "![perplexity against speed](pareto.svg)"] if picture else []
    lines += ["", "## Every point", "", *table(points, summary), "", "## Beside the dense baselines", ""]
    lines += [f"- {sentence}" for sentence in summary.findings]
    lines += [f"- {name} was not measured: {reason}" for name, reason in summary.absent.items()]
    return "\n".join([*lines, "", *_method(points, summary), ""])


def table(points: Sequence[SweepPoint], summary: SweepSummary) -> list[str]:
    """Markdown; * marks what nothing measured is better than."""
    rows = [_cells(point, point.label in summary.front) for point in points]
    return [_line(_HEAD), "|" + " --- |" * len(_HEAD), *map(_line, rows)]


def _cells(point: SweepPoint, on_front: bool) -> tuple[str, ...]:
    speed = point.tokens_per_second
    return (
        f"{point.cut}{' *' if on_front else ''}",
        point.weights,
        point.engine,
        f"{100 * point.facts.sparsity:.1f} %" if point.facts else "",
        interval(point.speedup),
        f"{speed:.1f}" if speed else "",
        _thousandths(point.perplexity_ratio),
        f"{point.bytes_on_disk / 1e6:.0f}" if point.bytes_on_disk else "",
        "" if point.dense else "yes" if point.sparse_kernel else "no",
        f"not measured: {point.reason}"
        if point.reason
        else point.quality_reason and f"no quality: {point.quality_reason}",
    )


def _thousandths(ratio: Ratio | None) -> str:
    """Perplexities lie closer together than speeds."""
    return f"{ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else ""


def _line(cells: Sequence[str]) -> str:
    clean = (" ".join(cell.replace("|", "/").split()) for cell in cells)
    return f"| {' | '.join(clean)} |"


def _method(points: Sequence[SweepPoint], summary: SweepSummary) -> list[str]:
    first = next((point for point in points if point.ms), points[0])
    work, quality = first.workload, next((point.quality for point in points if point.quality), None)
    text = f", perplexity on {quality.text} ({quality.tokens_scored} tokens)" if quality else ""
    notes = dict.fromkeys(point.licence for point in points if point.licence)
    how = (
        f"Speeds are decode steps of batch {work.batch} with {work.threads} thread(s) and a context of {work.context}, as "
        f"ratios to {summary.reference} taken in turn in the same session ({len(first.ms)} rounds); brackets are "
        f"{work.confidence:.0%} intervals{text}. * marks points that nothing measured is better than. Machine "
        f"{summary.machine}, {summary.made_by}."
    )
    return [how, *notes]


def write_sweep(out: Path, points: Sequence[SweepPoint], summary: SweepSummary) -> str:
    """Write the three files; a sentence if there is no picture because matplotlib is absent, else ""."""
    codec.save(summary, out / "sweep.json")
    why_not = ""
    try:
        write_file(out / "pareto.svg", pareto(points, summary.front, f"{summary.model} on {summary.cpu}"))
    except MissingEnvironmentError as error:
        why_not = str(error)
    write_file(out / "sweep.md", markdown(points, summary, picture=not why_not).encode())
    return why_not
