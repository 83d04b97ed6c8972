"""Spectra as small SVG panels, written directly: a model has hundreds of matrices, and a plotting library takes
minutes where this takes a second.

Each panel shows the eigenvalue density of W^T W on log-log axes and the power law that the metric fitted from its
tail start on: p(x) = share of eigenvalues in the tail * (alpha - 1) / xmin * (x / xmin) ^ -alpha.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from tailcut.allocation import LayerScore, LayerScores

Floats = npt.NDArray[np.float64]
BLUE, RED, GREY = "#0072B2", "#D55E00", "#777777"
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 210, 150, 6, 18, 16
_BINS = 40


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted tail: exponent and where it starts."""

    alpha: float
    start: float


def tail_metric(scores: LayerScores) -> str | None:
    """The metric whose fit can be drawn: it has a tail start in every layer; alpha_peak where there are several."""
    if not scores.layers:
        return None
    names = [key for key in scores.layers[0].values if f"{key}.xmin" in scores.layers[0].values]
    fitted = [name for name in names if all(f"{name}.xmin" in layer.values for layer in scores.layers)]
    return "alpha_peak" if "alpha_peak" in fitted else next(iter(fitted), None)


def block_panels(scores: LayerScores, spectra: Mapping[str, Floats]) -> list[tuple[int, tuple[str, ...]]]:
    """(decoder block, data addresses of one panel a matrix) for every block that has spectra."""
    metric = tail_metric(scores)
    blocks: dict[int, list[LayerScore]] = {}
    for layer in scores.layers:
        if layer.name in spectra:
            blocks.setdefault(layer.block, []).append(layer)
    return [(block, _addresses(layers, spectra, metric)) for block, layers in sorted(blocks.items())]


def _addresses(layers: Sequence[LayerScore], spectra: Mapping[str, Floats], metric: str | None) -> tuple[str, ...]:
    found = []
    for layer in layers:
        fit = Fit(layer.values[metric], layer.values[f"{metric}.xmin"]) if metric else None
        inside = panel(layer.name, np.asarray(spectra[layer.name], np.float64), fit)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        svg = f'{head}height="{_HEIGHT}" font-family="sans-serif" font-size="13">{inside}</svg>'
        found.append(f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")
    return tuple(found)


def panel(name: str, values: Floats, fit: Fit | None) -> str:
    """SVG of one matrix: its short name, range of eigenvalues, density and fit."""
    short = ".".join(name.rsplit(".", 2)[-2:])
    parts = [f'<text x="{_LEFT}" y="12">{escape(short)}</text>']
    finite = values[np.isfinite(values)]
    positive = finite[finite > max(0.0, finite.max(initial=0.0) * 1e-9)]
    if positive.size < 2 or positive.min() == positive.max():
        return "".join([*parts, f'<text x="{_LEFT}" y="40" fill="{GREY}">no spread of eigenvalues</text>'])
    edges = np.geomspace(positive.min(), positive.max(), _BINS + 1)
    density, _ = np.histogram(positive, edges, density=True)
    frame = _Frame.around(edges, density[density > 0])
    parts.append(_bars(frame, edges, density))
    if fit is not None and fit.alpha > 1 and 0 < fit.start < positive.max():
        grid = np.geomspace(fit.start, positive.max(), 24)
        share = float((positive >= fit.start).mean())
        law = share * (fit.alpha - 1) / fit.start * (grid / fit.start) ** -fit.alpha
        parts.append(f'<polyline points="{frame.points(grid, law)}" fill="none" stroke="{RED}" stroke-width="1.6"/>')
        parts.append(f'<text x="{_WIDTH - 10}" y="30" text-anchor="end" fill="{RED}">{fit.alpha:.2f}</text>')
    parts.append(_range_labels(edges))
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Log-log data coordinates -> pixels of a panel."""

    x0: float
    x1: float
    y0: float
    y1: float

    @classmethod
    def around(cls, edges: Floats, heights: Floats) -> "_Frame":
        low, high = float(np.log10(heights.min())), float(np.log10(heights.max()))
        return cls(float(np.log10(edges[0])), float(np.log10(edges[-1])), low - 0.3, high + 0.1)

    def xy(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        across = (np.log10(x) - self.x0) / max(1e-12, self.x1 - self.x0)
        up = np.clip((np.log10(y) - self.y0) / (self.y1 - self.y0), 0, 1)
        plot_height = _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * (_WIDTH - 2 * _LEFT - 6), _TOP + (1 - up) * plot_height

    def points(self, x: Floats, y: Floats) -> str:
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*self.xy(x, y), strict=True))


def _bars(frame: _Frame, edges: Floats, density: Floats) -> str:
    x, y = np.repeat(edges, 2)[1:-1], np.repeat(np.maximum(density, 10**frame.y0), 2)
    base = _HEIGHT - _BOTTOM
    right = float(frame.xy(edges[-1:], np.ones(1))[0][0])
    return (
        f'<polygon points="{_LEFT},{base} {frame.points(x, y)} {right:.1f},{base}" fill="{BLUE}" fill-opacity="0.55"/>'
    )


def _range_labels(edges: Floats) -> str:
    y = _HEIGHT - 4
    left = f'<text x="{_LEFT}" y="{y}" fill="{GREY}" font-size="11">{edges[0]:.1e}</text>'
    return (
        f'{left}<text x="{_WIDTH - 12}" y="{y}" fill="{GREY}" font-size="11" text-anchor="end">{edges[-1]:.1e}</text>'
    )
