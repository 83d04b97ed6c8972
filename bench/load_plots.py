"""One SVG of a load measurement: throughput, times to first and next tokens against streams; steps against context.

Colours as in a report (blue and vermilion, which colour-blind readers can tell apart); dense is a circle and a full line,
sparse a square and a dashed one.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from tailcut.bench.esd import BLUE, RED
from tailcut.bench.load_values import ContextPoint, EngineLoad, Latency, LoadPoint, LoadResult, LoadSide
from tailcut.bench.plots import Drawn, address, figure, plain

Axis = Any  # matplotlib is optional
_LATENCIES: Final[tuple[tuple[str, Callable[[LoadSide], Latency | None], str], ...]] = (
    (
        "first",
        lambda side: side.ttft_ms,
        "From a request's arrival to its first token: medians, and 99th percentiles (open marks).",
    ),
    (
        "next",
        lambda side: side.itl_ms,
        "From one token of a stream to its next: medians, and 99th percentiles (open marks).",
    ),
)
_STYLES: Final = (("dense", BLUE, "o-"), ("sparse", RED, "s--"))


def load_svg(result: LoadResult) -> bytes:
    """A row of panels for each engine that has points; the same result gives the same bytes."""
    panels = [panel for engine in result.engines for panel in _panels(engine)]
    columns = min(3, max(1, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    made, axes = figure(columns, rows, width=4.4 * columns, height=3.3 * rows)  # says so where there is no matplotlib
    from matplotlib import rc_context

    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(plain(panel.title), fontsize=10)
        panel.draw(axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "tailcut", "svg.fonttype": "path"}):
        made.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def of_load(result: LoadResult) -> list[Drawn]:
    """The same panels, each a figure of a report."""
    drawn = []
    for panel in (panel for engine in result.engines for panel in _panels(engine)):
        made, (axis,) = figure()
        panel.draw(axis)
        drawn.append(Drawn(panel.title, (address(made),), panel.caption))
    return drawn


class _Panel(NamedTuple):
    title: str
    draw: Callable[[Axis], None]
    caption: str


def _panels(engine: EngineLoad) -> list[_Panel]:
    name = engine.engine
    streams = [point for point in engine.streams if point.dense and point.sparse]
    contexts = [point for point in engine.contexts if point.dense_ms]
    found: list[_Panel] = []
    if streams:
        caption = "New tokens a second of all streams together, prompts included in the time."
        found.append(_Panel(f"{name}: throughput", lambda axis: _throughput(axis, streams), caption))
        for what, of, caption in _LATENCIES:
            found.append(_Panel(f"{name}: {what} token", partial(_latency, points=streams, of=of), caption))
    if contexts:
        caption = "Median decode step that ends at so many cached positions; the cache is read whole for every token."
        found.append(_Panel(f"{name}: decode step", lambda axis: _steps(axis, contexts), caption))
    return found


def _sides(point: LoadPoint) -> tuple[LoadSide | None, LoadSide | None]:
    return point.dense, point.sparse


def _throughput(axis: Axis, points: Sequence[LoadPoint]) -> None:
    counts = [point.streams for point in points]
    for place, (role, colour, style) in enumerate(_STYLES):
        rates = [side.tokens_per_second for point in points if (side := _sides(point)[place])]
        axis.plot(counts, rates, style, color=colour, label=role)
    axis.set(xlabel="streams", ylabel="tokens a second")
    _finish(axis, counts)


def _latency(axis: Axis, points: Sequence[LoadPoint], of: Callable[[LoadSide], Latency | None]) -> None:
    """Medians, and 99th percentiles as thin lines with open marks; both often lie far apart, hence a logarithmic axis."""
    from matplotlib.ticker import LogFormatter

    for place, (role, colour, style) in enumerate(_STYLES):
        sides = [(point.streams, of(side)) for point in points if (side := _sides(point)[place])]
        seen = [(count, latency) for count, latency in sides if latency]
        counts = [count for count, _ in seen]
        axis.plot(counts, [latency.p50 for _, latency in seen], style, color=colour, label=f"{role}, median")
        high = [latency.p99 for _, latency in seen]
        axis.plot(counts, high, style, color=colour, linewidth=0.8, markerfacecolor="none", label=f"{role}, p99")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(LogFormatter())  # plain numbers, not powers
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
    axis.set(xlabel="streams", ylabel="ms, logarithmic")
    _finish(axis, [point.streams for point in points])


def _steps(axis: Axis, points: Sequence[ContextPoint]) -> None:
    lengths = [point.context for point in points]
    for place, (role, colour, style) in enumerate(_STYLES):
        medians = [float(np.median((point.dense_ms, point.sparse_ms)[place])) for point in points]
        axis.plot(lengths, medians, style, color=colour, label=role)
    axis.set(xlabel="context, tokens", ylabel="median decode step, ms")
    _finish(axis, lengths)


def _finish(axis: Axis, places: Sequence[int]) -> None:
    """Powers of two at equal distances, named as they are."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(set(places)), labels=[str(place) for place in sorted(set(places))])
    axis.tick_params(axis="x", which="minor", bottom=False)
    if axis.get_yscale() == "linear":
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
    axis.legend(frameon=False, fontsize=8)
