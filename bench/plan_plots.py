"""Figures of a plan: what the spectra say of each matrix, what was cut from it, and the spectra themselves."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tailcut.allocation import LayerScores
from tailcut.bench.esd import BLUE, GREY, block_panels, tail_metric
from tailcut.bench.plots import Drawn, address, figure, plain
from tailcut.manifest import Manifest, RealisedLayer

_BLOCK = re.compile(r"\.(\d+)\.")  # model.layers.3.mlp.up_proj, transformer.h.3.attn.c_attn, ...
_SPREAD = 0.05  # of the largest value: the least that the colours of a map span
_MOST_KINDS = 24  # rows of a map that can still be read


def of_scores(scores: LayerScores) -> list[Drawn]:
    """The tail exponent of every matrix, and its mean over each decoder block."""
    metric = tail_metric(scores)
    if metric is None:
        return []
    made, (axis,) = figure()
    blocks = sorted({layer.block for layer in scores.layers})
    for layer in scores.layers:
        axis.plot(layer.block, layer.values[metric], ".", color=GREY, markersize=4)
    means = [np.mean([layer.values[metric] for layer in scores.layers if layer.block == block]) for block in blocks]
    axis.plot(blocks, means, "o-", color=BLUE, markersize=4)
    axis.set(xlabel="decoder block", ylabel=plain(metric))
    caption = "Dots: single matrices; line: block means. A lower exponent is a heavier tail, and is pruned less."
    return [Drawn("Tail exponent by block", (address(made),), caption)]


def of_plan(manifest: Manifest) -> list[Drawn]:
    """Maps of matrix kind by block: realised sparsity, and stored bits where any matrix has fewer than its float's."""
    grid = _by_kind(manifest)
    if not grid:
        return []
    zeros = {place: layer.sparsity for place, layer in grid.items()}
    caption = "Zeros counted in the written files, for every matrix (rows) of every decoder block (columns)."
    drawn = [_map("Sparsity of every matrix", zeros, "sparsity", caption)]
    bits = {place: float(layer.plan.bits) for place, layer in grid.items() if layer.plan.bits is not None}
    if bits:
        caption = "Bits a kept weight is stored with; an empty cell keeps its float."
        drawn.append(_map("Bits of every matrix", bits, "bits", caption))
    return drawn


def _by_kind(manifest: Manifest) -> dict[tuple[str, int], RealisedLayer]:
    """(what follows the block's number in the name, the block) -> the matrix."""
    found = {}
    for name, layer in manifest.layers.items():
        match = _BLOCK.search(name)
        if match and len(match.group(1)) < 6:  # a hostile name is not a million columns
            found[name[match.end() :], int(match.group(1))] = layer
    return found


def _map(title: str, values: Mapping[tuple[str, int], float], label: str, caption: str) -> Drawn:
    kinds = list(dict.fromkeys(kind for kind, _ in values))[:_MOST_KINDS]
    columns = {block: column for column, block in enumerate(sorted({block for _, block in values}))}
    cells = np.full((len(kinds), len(columns)), np.nan)
    for (kind, block), value in values.items():
        if kind in kinds:
            cells[kinds.index(kind), columns[block]] = value
    made, (axis,) = figure(height=1.3 + 0.3 * len(kinds))
    image = axis.imshow(cells, aspect="auto", cmap="cividis", interpolation="nearest")
    low, high = image.get_clim()
    if high - low < _SPREAD * high:  # rounding of one budget is not a pattern
        image.set_clim(low - _SPREAD * high / 2, high + _SPREAD * high / 2)
    axis.set_yticks(range(len(kinds)), [plain(kind.rsplit(".", 1)[-1]) for kind in kinds])
    _block_ticks(axis, list(columns))
    made.colorbar(image, ax=axis, label=label, pad=0.02)
    return Drawn(title, (address(made),), caption)


def _block_ticks(axis: Any, blocks: Sequence[int]) -> None:  # noqa: ANN401 matplotlib is optional
    shown = range(0, len(blocks), max(1, len(blocks) // 8))
    axis.set_xticks(list(shown), [str(blocks[place]) for place in shown])
    axis.set_xlabel("decoder block")
    axis.tick_params(length=0)


def of_spectra(scores: LayerScores, spectra: Mapping[str, npt.NDArray[np.float64]]) -> list[Drawn]:
    """A strip of panels for each decoder block."""
    return [Drawn(f"Block {block}", panels, "") for block, panels in block_panels(scores, spectra)]
