"""Figures of a report, drawn without a display and returned as data addresses that an HTML page embeds.

Names come from model files: they are drawn as plain text, never as mathematics. Colours are Okabe and Ito's, which
colour-blind readers can tell apart, and nothing hangs on colour alone: dense is a circle and a full line, sparse a
square and a dashed line, and engines differ by marker. A figure is as wide as a phone's screen, so that its letters
are still read there; a wide screen shows two side by side.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.bench.esd import BLUE, GREY, RED
from tailcut.errors import MissingEnvironmentError
from tailcut.results import BenchResult, EngineResult, Side

GREEN, PURPLE, ORANGE, SKY = "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
ENGINE_MARKS = tuple(zip((RED, GREEN, PURPLE, ORANGE, SKY, BLUE), "sD^vPX", strict=True))
_STYLES = {"dense": (BLUE, "o", "-"), "sparse": (RED, "s", "--")}
_WIDTH, _HEIGHT = 4.8, 3.3  # inches


@dataclass(frozen=True, slots=True)
class Drawn:
    """One figure: data addresses of its images, one unless it is a strip of small panels."""

    title: str
    images: tuple[str, ...]
    caption: str


def figure(columns: int = 1, rows: int = 1, width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Any, list[Any]]:
    """A figure without pyplot's global state, and its axes in reading order."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingEnvironmentError("report plots need matplotlib; install tailcut[report]") from error
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = [made.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes


def address(made: Any) -> str:  # noqa: ANN401 matplotlib is optional
    """A data: address; the same figure gives the same bytes. Transparent: the page decides what lies behind."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "tailcut", "svg.fonttype": "path"}):
        made.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics, short enough for a legend."""
    return (text if len(text) <= 40 else f"{text[:39]}…").replace("$", r"\$")


def measured(result: BenchResult) -> tuple[EngineResult, ...]:
    return tuple(engine for engine in result.engines if engine.dense is not None and engine.sparse is not None)


def of_latency(result: BenchResult) -> list[Drawn]:
    """For every engine that ran: how its steps are distributed, and what time did to them."""
    return [drawn for engine in measured(result) for drawn in (_distribution(engine), _blocks(engine))]


def _sides(engine: EngineResult) -> Iterator[tuple[Side, str, str, str]]:
    for side in (engine.dense, engine.sparse):
        if side is not None:
            yield side, *_STYLES[side.role]


def _distribution(engine: EngineResult) -> Drawn:
    """Without the slowest steps: one stall of a second would press everything else against the axis."""
    made, (axis,) = figure()
    times = {side.role: np.sort(_steps(side)) for side, *_ in _sides(engine)}
    low, high = _window(list(times.values()))
    for side, colour, marker, line in _sides(engine):
        own = times[side.role]
        shares = np.arange(1, own.size + 1) / own.size
        axis.step(own, shares, color=colour, linestyle=line, label=side.role, where="post")
        axis.plot([np.median(own)], [0.5], marker, color=colour, markersize=7)
    axis.set(xlabel="decode step, ms", ylabel="share of steps", ylim=(0, 1.02), xlim=(low, high))
    axis.legend(frameon=False, loc="lower right")
    slower = sum(int((own > high).sum()) for own in times.values())
    beyond = f" {slower} of {sum(own.size for own in times.values())} steps were slower than the right edge."
    caption = f"Share of decode steps that took at most so long; the mark is the median.{beyond if slower else ''}"
    return Drawn(f"Decode latency, {engine.engine}", (address(made),), caption)


def _window(times: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """Where both distributions are: up to the 99th percentile, and to no more than 2.5 times the slower median."""
    low = min(float(own.min()) for own in times)
    slow = max(float(np.median(own)) for own in times)
    high = min(max(float(np.percentile(own, 99)) for own in times), 2.5 * slow)
    room = 0.05 * (high - low) or 0.05 * high or 1.0
    return low - room, high + room


def _blocks(engine: EngineResult) -> Drawn:
    made, (axis,) = figure()
    for side, colour, marker, line in _sides(engine):
        medians = [float(np.median(block)) for block in side.decode_ms if block]
        style = {"linestyle": line, "color": colour, "label": side.role}
        # marks of a long session would hide its lines
        axis.plot(range(1, len(medians) + 1), medians, marker, markersize=6 if len(medians) < 20 else 3, **style)
    axis.set(xlabel="ABBA block", ylabel="median step, ms")
    axis.set_ylim(0, 1.12 * axis.get_ylim()[1])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False, loc="lower right")
    caption = "Each block's median: what time did to both sides. Lines that move together cancel in the speedup."
    return Drawn(f"Block by block, {engine.engine}", (address(made),), caption)


def _steps(side: Side) -> npt.NDArray[np.float64]:
    return np.concatenate([np.asarray(block, np.float64) for block in side.decode_ms])


def of_roofline(result: BenchResult) -> list[Drawn]:
    """Tokens a second of each side beside what memory allows, and latency against sparsity."""
    engines = measured(result)
    return [_against_memory(engines), _latency_by_sparsity(result, engines)] if engines else []


def ceiling(side: Side) -> float | None:
    """Tokens a second that the measured bandwidth allows; None where the bytes fit in cache."""
    return side.tokens_per_second / side.roofline.share if side.roofline.share else None


def _against_memory(engines: Sequence[EngineResult]) -> Drawn:
    rows = [(engine, *row) for engine in engines for row in _sides(engine)]
    made, (axis,) = figure(height=1.3 + 0.42 * len(rows))
    for place, (_, side, colour, _, _) in enumerate(rows):
        hatch = "//" if side.role == "sparse" else ""
        axis.barh(place, side.tokens_per_second, color=colour, hatch=hatch, edgecolor="white", height=0.62)
        limit = ceiling(side)
        if limit is not None:
            axis.plot([limit, limit], [place - 0.4, place + 0.4], color="black", linewidth=2)
        share = f" ({side.roofline.share:.0%})" if side.roofline.share else ""
        # at the right edge, where neither a bar nor a limit is
        where = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 9}
        axis.text(1.0, place, f"{side.tokens_per_second:.1f}{share}", **where)
    axis.set_yticks(range(len(rows)), [plain(f"{engine.engine}, {side.role}") for engine, side, *_ in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.4 * axis.get_xlim()[1])
    axis.set_xlabel("tokens per second")
    caption = (
        "Bars: measured, with the share of the memory bandwidth reached. Black line: what the bytes a token needs and "
        "this machine's bandwidth allow at most; none is drawn for weights that fit in cache."
    )
    return Drawn("Speed against what memory allows", (address(made),), caption)


def _latency_by_sparsity(result: BenchResult, engines: Sequence[EngineResult]) -> Drawn:
    made, (axis,) = figure()
    grid = np.linspace(0, 0.95, 60)
    for engine, (colour, marker) in zip(engines, _marks(len(engines)), strict=True):
        if engine.dense is None or engine.sparse is None:
            continue
        dense, sparse = float(np.median(_steps(engine.dense))), float(np.median(_steps(engine.sparse)))
        axis.plot([0, result.sparse.sparsity], [dense, sparse], f"{marker}-", color=colour, label=plain(engine.engine))
        axis.plot(grid, dense * _bytes_share(result, engine.dense, grid), ":", color=colour)
    axis.set(xlabel="sparsity of the block linears", ylabel="median decode step, ms", xlim=(-0.02, 1))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    caption = (
        "Points: this run, dense and sparse. Dotted: the dense step scaled by the bytes a token needs when zeros cost "
        "one mask bit each; a step below its line means that the dense side does not reach its own bandwidth."
    )
    return Drawn("Latency against sparsity", (address(made),), caption)


def _marks(count: int) -> list[tuple[str, str]]:
    return [ENGINE_MARKS[number % len(ENGINE_MARKS)] for number in range(count)]


def _bytes_share(result: BenchResult, dense: Side, sparsity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bytes a token with bitmask weights at each sparsity, over the dense bytes; bits a weight as this engine has them."""
    facts = result.sparse
    if not facts.sparsity or not facts.total_parameters:
        return np.ones_like(sparsity)
    prunable = facts.total_parameters * facts.whole_model_sparsity / facts.sparsity
    bits = 8 * dense.roofline.weight_bytes / facts.total_parameters
    saved = np.maximum(0.0, prunable * (bits * sparsity - 1) / 8)
    return np.asarray(1 - saved / dense.roofline.bytes_per_token, np.float64)


def of_quality(result: BenchResult) -> list[Drawn]:
    """Quality against speed with the roofline, for the first text."""
    engines = [engine for engine in measured(result) if engine.decode_speedup is not None]
    return [_frontier(result, engines)] if engines and result.quality else []


def _frontier(result: BenchResult, engines: Sequence[EngineResult]) -> Drawn:
    made, (axis,) = figure()
    ratio = result.quality[0].ratio
    axis.axhline(1, color=GREY, linewidth=0.8)
    axis.plot([1], [1], "o", color=BLUE, markersize=8, label="dense")
    for engine, (colour, marker) in zip(engines, _marks(len(engines)), strict=True):
        speed = engine.decode_speedup
        if speed is None:
            continue
        axis.errorbar(
            [speed.value],
            [ratio.value],
            xerr=[[speed.value - speed.low], [speed.high - speed.value]],
            yerr=[[ratio.value - ratio.low], [ratio.high - ratio.value]],
            fmt=marker,
            color=colour,
            capsize=3,
            label=plain(engine.engine),
        )
        if engine.byte_ratio:
            axis.axvline(engine.byte_ratio, color=colour, linestyle=":", linewidth=1.4)
    axis.set(xlabel="decode speedup over dense", ylabel="perplexity over dense")
    axis.margins(0.15)
    axis.legend(frameon=False, fontsize=8)
    caption = (
        "Right and down is better; bars are confidence intervals. Dotted, in the engine's colour: the roofline, the "
        "speedup that fewer bytes a token allow a run that is limited by memory alone."
    )
    return Drawn("Quality against speed", (address(made),), caption)
