"""A search in one picture: how the best divergence fell over time, and the plan by block and kind beside uniform.

Drawn without a display. Blue and vermilion (Okabe-Ito) can be told apart by colour-blind readers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tailcut.allocation import Allocation, LayerScores
from tailcut.compress.searches._grid import kind_of
from tailcut.compress.searches._measures import FINAL, PREPARE
from tailcut.compress.searches._trace import Record, read_trace
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.files import write_file

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_ENDINGS: Final = (".svg", ".png", ".pdf")


def require_drawable(path: Path) -> None:
    """Before the search, not after it: a known ending, and matplotlib is there."""
    if path.suffix not in _ENDINGS:
        raise InputError(f"{path}: a picture ends in {', '.join(_ENDINGS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingEnvironmentError("plots need matplotlib; install tailcut[report]") from error


def draw(trace: Path, allocation: Allocation, scores: LayerScores, path: Path) -> None:
    """Write the picture of the search in `trace` whose result `allocation` is."""
    from io import BytesIO

    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(9.6, 6.4), layout="constrained")
    FigureCanvasAgg(made)
    over_time, by_block = made.subplots(2, 1)
    for axis in (over_time, by_block):
        axis.spines[["top", "right"]].set_visible(False)
    _progress(over_time, read_trace(trace))
    _plan(by_block, allocation, scores)
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "tailcut", "svg.fonttype": "path"}):
        made.savefig(buffer, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    write_file(path, buffer.getvalue())


def progress(records: Sequence[Record]) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """(stage, tokens) -> (seconds on the search's clock, least divergence so far at that many tokens), as it fell.

    Divergences of different amounts of text do not compare, so each amount has a line of its own.
    """
    lines: dict[tuple[str, int], list[tuple[float, float]]] = {}
    clock = 0.0
    for record in records:
        clock += record.seconds
        if record.stage != PREPARE and np.isfinite(record.kl):
            line = lines.setdefault((record.stage, record.tokens), [])
            if not line or record.kl < line[-1][1]:
                line.append((clock, record.kl))
    return lines


def _progress(axis: Any, records: Sequence[Record]) -> None:  # noqa: ANN401 - matplotlib is optional
    lines, ends = progress(records), sum(record.seconds for record in records)
    stages = list(dict.fromkeys(record.stage for record in records if record.stage not in (FINAL, PREPARE)))
    for stage in stages:
        most = max(tokens for name, tokens in lines if name == stage) if any(n == stage for n, _ in lines) else 0
        for (name, tokens), points in lines.items():
            if name == stage and tokens == most:
                times, values = zip(*points, strict=True)
                colour = _COLOURS[stages.index(stage) % 2]
                # dots: a single value would make no line
                line = {
                    "where": "post",
                    "color": colour,
                    "marker": ".",
                    "label": f"{stage}, {tokens} tokens, best so far",
                }
                axis.step(times, values, **line)
    _finals(axis, records)
    axis.set(xlabel="seconds", ylabel="KL to dense, nats a token", xlim=(0, ends * 1.02 or 1))
    axis.margins(y=0.1)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


def _finals(axis: Any, records: Sequence[Record]) -> None:  # noqa: ANN401
    clock, points = 0.0, []
    for record in records:
        clock += record.seconds
        if record.stage == FINAL and np.isfinite(record.kl):
            points.append((clock, record.kl, record.label))
    if points:
        axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", color=_COLOURS[2], label="really cut")
        for place, (x, y, label) in enumerate(points):  # above and below in turn: finals are often alike
            axis.annotate(
                label, (x, y), fontsize=7, ha="right", xytext=(-4, -9 if place % 2 else 4), textcoords="offset points"
            )


def _plan(axis: Any, allocation: Allocation, scores: LayerScores) -> None:  # noqa: ANN401
    plans, sizes = allocation.plans, {layer.name: layer.parameters for layer in scores.layers}
    rounded = any(plan.bits is not None for plan in plans.values())
    shown = {name: float(plan.bits or 0) if rounded else plan.pattern.sparsity for name, plan in plans.items()}
    kinds: dict[str, list[tuple[int, float]]] = {}
    for layer in scores.layers:
        kinds.setdefault(kind_of(layer.name, layer.block), []).append((layer.block, shown[layer.name]))
    for place, (kind, points) in enumerate(kinds.items()):
        blocks, values = zip(*points, strict=True)
        axis.plot(blocks, values, "o-", markersize=3, linewidth=1, color=_COLOURS[place % len(_COLOURS)], label=kind)
    mean = sum(shown[name] * size for name, size in sizes.items()) / sum(sizes.values())
    axis.axhline(mean, color="#999999", linestyle=":", label="mean" if rounded else "uniform")
    axis.set(xlabel="decoder block", ylabel="bits" if rounded else "sparsity", ylim=(0, 8.5 if rounded else 1))
    axis.legend(frameon=False, fontsize=7, ncols=4)
