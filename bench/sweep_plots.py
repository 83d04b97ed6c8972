"""Pictures of a sweep and of a history, as SVG files: quality against speed, and results over time.

Colours are Okabe and Ito's; families also differ in their markers, and dense baselines are grey squares with letters, so
nothing is said by colour alone.
"""

import io
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from string import ascii_uppercase
from typing import Any, Final

from tailcut.bench.plots import figure, plain
from tailcut.bench.store import Row
from tailcut.results import Ratio
from tailcut.sweep_advice import families, family_name
from tailcut.sweep_points import SweepPoint, percent

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS: Final = "o^Dvp*"
_GREY: Final = "#555555"
_LOG_FROM: Final = 4.0  # a range of ratios beyond this is drawn on a logarithmic axis


def svg(made: Any) -> bytes:  # noqa: ANN401 matplotlib is optional
    """The figure's SVG on white; the same figure gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "tailcut", "svg.fonttype": "path"}):
        made.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _text(name: str) -> str:
    """A name from a file: no control characters, no mathematics."""
    return plain("".join(letter if letter.isprintable() else "?" for letter in name))


def pareto(points: Sequence[SweepPoint], front: Sequence[str], title: str) -> bytes:
    """Perplexity over dense against speed over the reference, with intervals; `front`: labels that get a ring."""
    judged = [point for point in points if point.speedup and point.perplexity_ratio]
    made, (axis,) = figure(width=9.6, height=5.2)
    for number, family in enumerate(families(judged)):
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        _bars(axis, family, label=_text(family_name(family)), **style)
        for point in family:
            _name(axis, point, point.pattern or percent(point.sparsity), style["color"])
    for letter, point in zip(ascii_uppercase, (point for point in judged if point.dense), strict=False):
        _bars(axis, [point], color=_GREY, marker="s", label=_text(f"{letter} {point.label}"))
        _name(axis, point, letter, _GREY)
    ringed = [point for point in judged if point.label in front]
    ring = {"markersize": 15, "fillstyle": "none", "color": "black", "linestyle": "none", "markeredgewidth": 0.7}
    axis.plot(*_places(ringed), "o", label="nothing measured is better", zorder=1, **ring)
    _scale(axis, judged)
    axis.set(xlabel="decode speed over dense float32 in ONNX Runtime", ylabel="perplexity over dense float32")
    axis.set_title(_text(title), fontsize=10)
    if judged:
        axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(made)


def _bars(axis: Any, points: Sequence[SweepPoint], **style: Any) -> None:  # noqa: ANN401
    across = [point.speedup for point in points if point.speedup]
    up = [point.perplexity_ratio for point in points if point.perplexity_ratio]
    x, y = _places(points)
    axis.errorbar(x, y, xerr=_reach(across), yerr=_reach(up), linewidth=1, capsize=2, markersize=6, **style)


def _places(points: Sequence[SweepPoint]) -> tuple[list[float], list[float]]:
    x = [point.speedup.value for point in points if point.speedup]
    return x, [point.perplexity_ratio.value for point in points if point.perplexity_ratio]


def _reach(ratios: Sequence[Ratio]) -> list[list[float]]:
    """Lengths of the bars below and above; a median may lie on its interval's end."""
    below = [max(0.0, ratio.value - ratio.low) for ratio in ratios]
    return [below, [max(0.0, ratio.high - ratio.value) for ratio in ratios]]


def _name(axis: Any, point: SweepPoint, text: str, colour: str) -> None:  # noqa: ANN401
    (x,), (y,) = _places([point])
    axis.annotate(_text(text), (x, y), textcoords="offset points", xytext=(8, 6), fontsize=8, color=colour)


def _scale(axis: Any, points: Sequence[SweepPoint]) -> None:  # noqa: ANN401
    for values, which in zip(_places(points), ("x", "y"), strict=True):
        if values and max(values) / min(values) > _LOG_FROM:
            from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

            getattr(axis, f"set_{which}scale")("log")
            ruler = getattr(axis, f"{which}axis")
            ruler.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
            ruler.set_major_formatter(ScalarFormatter())
            ruler.set_minor_formatter(NullFormatter())


def history(rows: Sequence[Row]) -> bytes:
    """One model on one machine over time: speed above, perplexity below, a line a series, intervals as bars."""
    first, (made, axes) = rows[0], figure(rows=2, width=9.6, height=6.4)
    measured = sorted((row for row in rows if row.measured.speedup), key=lambda row: row.measured.series)
    for number, (series, group) in enumerate(groupby(measured, lambda row: row.measured.series)):
        taken = sorted(group, key=lambda row: row.recorded)
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number // len(_COLOURS) % len(_MARKERS)]}
        _over_time(axes[0], taken, "speedup", label=_text(series), **style)
        _over_time(axes[1], taken, "perplexity", label=None, **style)
    axes[0].set_ylabel("decode speed over dense")
    axes[1].set_ylabel("perplexity over dense")
    axes[0].set_title("\n".join(map(_text, (f"{first.model} on {first.cpu}", f"machine {first.machine}"))), fontsize=10)
    made.autofmt_xdate()
    axes[0].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return svg(made)


def _over_time(axis: Any, rows: Sequence[Row], what: str, **style: Any) -> None:  # noqa: ANN401
    names = ("speedup", "speedup_low", "speedup_high")
    if what == "perplexity":
        names = ("perplexity_ratio", "perplexity_low", "perplexity_high")
    triples = [(row.recorded, *(getattr(row.measured, name) for name in names)) for row in rows]
    known = [item for item in triples if item[1] is not None]
    if not known:
        return
    when = [datetime.fromisoformat(item[0]) for item in known]
    below = [max(0.0, value - low) for _, value, low, _ in known]
    above = [max(0.0, high - value) for _, value, _, high in known]
    values = [item[1] for item in known]
    axis.errorbar(when, values, yerr=[below, above], linewidth=1, capsize=2, markersize=5, **style)
