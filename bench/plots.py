"""Figures of a report, drawn without a display and returned as data addresses that an HTML page embeds.

Names come from model files: they are drawn as plain text, never as mathematics. Colours are the Okabe-Ito pair
blue and vermilion, which colour-blind readers can tell apart.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.allocation import LayerScores
from tailcut.bench.esd import BLUE, GREY, RED, block_strips, tail_metric
from tailcut.errors import MissingEnvironmentError
from tailcut.manifest import Manifest
from tailcut.results import BenchResult, EngineResult, Side

_WORD_BITS = 32  # float32 weights


@dataclass(frozen=True, slots=True)
class Drawn:
    """One figure. `group` folds figures of one kind together in the page ("" for none)."""

    title: str
    address: str
    caption: str
    group: str = ""


def figure(columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 3.6) -> tuple[Any, list[Any]]:
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
    """A data: address; the same figure gives the same bytes."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "tailcut", "svg.fonttype": "path"}):
        made.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def of_speed(result: BenchResult) -> list[Drawn]:
    """Latency distributions, latency against sparsity, quality against speed."""
    measured = [engine for engine in result.engines if engine.status == "measured"]
    if not measured:
        return []
    drawn = [_distributions(engine) for engine in measured]
    drawn.append(_latency_by_sparsity(result, measured))
    if result.quality:
        drawn.append(_quality_by_speed(result, measured))
    return drawn


def _distributions(engine: EngineResult) -> Drawn:
    made, (steps, blocks) = figure(columns=2, width=8.4)
    for side, colour in _sides(engine):
        times = np.sort(np.concatenate([np.asarray(block) for block in side.decode_ms]))
        steps.step(times, np.arange(1, times.size + 1) / times.size, color=colour, label=side.role, where="post")
        medians = [float(np.median(block)) for block in side.decode_ms]
        blocks.plot(range(1, len(medians) + 1), medians, "o-", color=colour, label=side.role)
    steps.set(xlabel="decode step, ms", ylabel="share of steps", ylim=(0, 1))
    blocks.set(xlabel="ABBA block", ylabel="median step, ms")
    blocks.set_ylim(bottom=0)
    steps.legend(frameon=False)
    caption = "Left: how decode steps are distributed. Right: each block's median, what time did to both sides."
    return Drawn(f"Decode latency, {engine.engine}", address(made), caption)


def _sides(engine: EngineResult) -> list[tuple[Side, str]]:
    pairs = ((engine.dense, BLUE), (engine.sparse, RED))
    return [(side, colour) for side, colour in pairs if side is not None]


def _latency_by_sparsity(result: BenchResult, engines: Sequence[EngineResult]) -> Drawn:
    made, (axis,) = figure()
    grid = np.linspace(0, 0.95, 60)
    for number, engine in enumerate(engines):
        if engine.dense is None or engine.sparse is None:
            continue
        dense, sparse = _median(engine.dense), _median(engine.sparse)
        colour = (BLUE, RED, "#009E73", "#CC79A7")[number % 4]
        axis.plot([0, result.sparse.sparsity], [dense, sparse], "o-", color=colour, label=plain(engine.engine))
        ceiling = dense * _bytes_share(result, engine.dense, grid)
        axis.plot(grid, ceiling, ":", color=colour, label=plain(f"{engine.engine}: bytes alone"))
    axis.set(xlabel="sparsity of the block linears", ylabel="median decode step, ms", xlim=(-0.02, 1))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)
    caption = (
        "Points: this run. Dotted: the dense step scaled by the bytes a token needs when zeros cost one mask bit each; "
        "a step below its line means that the dense side does not reach its own bandwidth."
    )
    return Drawn("Latency against sparsity", address(made), caption)


def _median(side: Side) -> float:
    return float(np.median(np.concatenate([np.asarray(block) for block in side.decode_ms])))


def _bytes_share(result: BenchResult, dense: Side, sparsity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bytes a token with bitmask weights at each sparsity, over the dense bytes."""
    facts = result.sparse
    prunable = facts.total_parameters * facts.whole_model_sparsity / facts.sparsity if facts.sparsity else 0.0
    saved = np.maximum(0.0, prunable * (_WORD_BITS * sparsity - 1) / 8)
    return np.asarray(1 - saved / dense.roofline.bytes_per_token, np.float64)


def _quality_by_speed(result: BenchResult, engines: Sequence[EngineResult]) -> Drawn:
    made, (axis,) = figure()
    ratio = result.quality[0].ratio
    axis.plot([1], [1], "s", color=GREY, label="dense")
    for number, engine in enumerate(engines):
        speed = engine.decode_speedup
        if speed is None:
            continue
        colour = (BLUE, RED, "#009E73", "#CC79A7")[number % 4]
        across = [[speed.value - speed.low], [speed.high - speed.value]]
        up = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
        axis.errorbar(
            [speed.value], [ratio.value], xerr=across, yerr=up, fmt="o", color=colour, label=plain(engine.engine)
        )
        if engine.byte_ratio:
            axis.axvline(engine.byte_ratio, color=colour, linestyle=":", linewidth=1)
    axis.set(xlabel="decode speedup over dense", ylabel="perplexity over dense")
    axis.legend(frameon=False)
    caption = "Right and down is better. Bars: intervals. Dotted: the speedup that the bytes alone allow."
    return Drawn("Quality against speed", address(made), caption)


def of_layers(scores: LayerScores, manifest: Manifest | None) -> list[Drawn]:
    """Mean metric of each block, and its realised sparsity where a manifest says it."""
    metric = tail_metric(scores)
    blocks = sorted({layer.block for layer in scores.layers})
    made, axes = figure(columns=1, rows=2 if manifest else 1, height=5.0 if manifest else 3.0)
    if metric:
        for layer in scores.layers:
            axes[0].plot(layer.block, layer.values[metric], ".", color=GREY, markersize=4)
        means = [np.mean([layer.values[metric] for layer in scores.layers if layer.block == block]) for block in blocks]
        axes[0].plot(blocks, means, "o-", color=BLUE)
        axes[0].set_ylabel(plain(metric))
    if manifest is not None:
        _sparsity_by_block(axes[1], scores, manifest, blocks)
    axes[-1].set_xlabel("decoder block")
    caption = "Dots: single matrices; line: block means. A lower exponent is a heavier tail, and is pruned less."
    return [Drawn("Tail exponent and sparsity by block", address(made), caption)]


def _sparsity_by_block(axis: Any, scores: LayerScores, manifest: Manifest, blocks: Sequence[int]) -> None:  # noqa: ANN401
    heights = []
    for block in blocks:
        names = [layer.name for layer in scores.layers if layer.block == block and layer.name in manifest.layers]
        size = sum(int(np.prod(manifest.layers[name].shape)) for name in names)
        heights.append(sum(manifest.layers[name].zeros for name in names) / max(1, size))
    axis.bar(list(blocks), heights, color=RED)
    axis.axhline(manifest.sparsity, color=GREY, linestyle=":")
    axis.set(ylabel="sparsity", ylim=(0, 1))


def of_spectra(scores: LayerScores, spectra: Mapping[str, npt.NDArray[np.float64]]) -> list[Drawn]:
    """One strip of panels a decoder block."""
    caption = (
        "Eigenvalue density of each matrix's W^T W on log-log axes; the line and its exponent are the fitted power law "
        "from its tail start on."
    )
    group = "Spectra with the fitted tail"
    return [Drawn(f"Block {block}", address, caption, group) for block, address in block_strips(scores, spectra)]
