"""The big table of allocators as Markdown and as a picture; what of a difference a few windows make. No torch."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from alloc_cells import PATTERNS, PRUNERS, SAME, SPARSITIES, VARIANTS  # beside this script
from bench_common import mean_and_error, robust_deviation

from tailcut.bench.report import markdown_row, markdown_table
from tailcut.bench.tables import Table

Floats = npt.NDArray[np.float64]
BASE: Final = "uniform"
_WORST: Final = 0.05  # share of the windows that is looked at by itself
_SIDE: Final = NormalDist().inv_cdf(0.975)


class Rows:
    """The cells of a result, found by what they are."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.scored = int(content["setup"]["context"]) - 1
        self.models = list(content["models"])
        self._rows: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
        for key, row in content["rows"].items():
            *words, seed = key.split()
            self._rows.setdefault(tuple(words), {})[int(seed)] = row

    def of(self, model: str, variant: str, pruner: str, target: str) -> dict[int, dict[str, Any]]:
        """Rows by seed."""
        return self._rows.get((model, SAME.get(variant, variant), pruner, target), {})

    def difference(self, model: str, variant: str, pruner: str, target: str, base_of: str = BASE) -> Floats | None:
        """Nats a token above uniform of each window, the mean over the seeds that both have; None: no such seed."""
        ours, base = self.of(model, variant, pruner, target), self.of(model, base_of, pruner, target)
        seeds = sorted(ours.keys() & base.keys())
        if not seeds:
            return None
        nats = [np.asarray(ours[seed]["nll"]) - np.asarray(base[seed]["nll"]) for seed in seeds]
        return np.asarray(np.mean(nats, axis=0) / self.scored, np.float64)

    def places(self) -> Iterator[tuple[str, str, str]]:
        """Model, pruner and target of every column, in the tables' order."""
        return product(self.models, PRUNERS, (*reversed(SPARSITIES), *PATTERNS))

    def seen(self, model: str, pruner: str, targets: Sequence[str]) -> list[str]:
        """Variants with any of these targets, in the table's order."""
        names = [*VARIANTS, *SAME]
        return [name for name in names if any(self.of(model, name, pruner, target) for target in targets)]


def ratio_interval(difference: Floats) -> tuple[float, float, float]:
    """Perplexity ratio and its 95 % interval from differences a window [windows]."""
    mean, error = mean_and_error(difference)
    error = error if difference.size > 1 else 0.0
    low, middle, high = (float(np.exp(mean + side * error)) for side in (-_SIDE, 0.0, _SIDE))
    return middle, low, high


def worst_share(difference: Floats) -> tuple[float, float]:
    """What the 5 % of the windows that carry most of a difference make of it; the perplexity ratio without them.

    "Most" in the direction of the mean. A share of 0.05 is what windows that are all alike would give, above 1 the
    other windows go the other way.
    """
    count = max(1, round(_WORST * difference.size))
    order = np.argsort(-difference * np.sign(difference.mean() or 1.0), kind="stable")
    total = float(difference.sum())
    share = float(difference[order[:count]].sum()) / total if total else 0.0
    rest = difference[order[count:]]
    return share, float(np.exp(rest.mean())) if rest.size else 1.0


def render(content: dict[str, Any]) -> str:
    """Every model and pruner: a table of sparsities and one of patterns, and how to read them."""
    rows, parts = Rows(content), list[str]()
    for model in rows.models:
        for pruner in PRUNERS:
            for targets in (tuple(reversed(SPARSITIES)), PATTERNS):
                found = [target for target in targets if any(rows.of(model, v, pruner, target) for v in VARIANTS)]
                if found:
                    dense = content["models"][model]["ppl"]
                    parts += [f"**{model}, {pruner}** (dense {dense:.2f})", _table(rows, model, pruner, found)]
    return "\n\n".join([*parts, _note(content)])


def _table(rows: Rows, model: str, pruner: str, targets: Sequence[str]) -> str:
    head = ["allocator"]
    for target in targets:
        title = target if ":" in target else f"{float(target):.0%}"
        head += [f"{title}: perplexity", "ratio to uniform", "KL"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for variant in rows.seen(model, pruner, targets):
        told = [cell for target in targets for cell in _cells(rows, model, variant, pruner, target)]
        lines.append(markdown_row([_named(rows, model, variant, pruner, targets), *told]))
    return "\n".join(lines)


def _named(rows: Rows, model: str, variant: str, pruner: str, targets: Sequence[str]) -> str:
    """A search with the time or evaluations that it had."""
    found = [row for target in targets for row in rows.of(model, variant, pruner, target).values()]
    efforts = sorted({_effort(row["search"]) for row in found if "search" in row})
    return f"{variant} ({', '.join(efforts)})" if efforts else variant


def _cells(rows: Rows, model: str, variant: str, pruner: str, target: str) -> list[str]:
    found = rows.of(model, variant, pruner, target)
    if not found:
        return ["", "", ""]
    values = np.array([row["ppl"] for row in found.values()])
    told = number(float(values.mean()))
    if values.size > 1:
        told += f" ({number(float(values.min()))}–{number(float(values.max()))})"
    kl = f"{np.mean([row['kl'] for row in found.values()]):.3f}"
    difference = rows.difference(model, variant, pruner, target)
    if variant == BASE or difference is None:
        return [told, "", kl]
    middle, low, high = ratio_interval(difference)
    return [told, f"{middle:.3f} ({low:.3f} to {high:.3f})", kl]


def number(value: float) -> str:
    return f"{value:.1f}" if value < 1e4 else f"{value:.3g}"


def _effort(search: float) -> str:
    return f"{search:g} {'evaluations' if isinstance(search, int) else 'minutes'}"


def _note(content: dict[str, Any]) -> str:
    setup, rows = content["setup"], content["rows"].values()
    windows = sorted({int(model["windows"]) for model in content["models"].values()})
    seeds = sorted({int(key.split()[-1]) for key in content["rows"]})
    searched = " or ".join(sorted({_effort(row["search"]) for row in rows if "search" in row})) or "no time"
    devices = ", ".join(sorted({row["device"] for row in rows}))
    commits = ", ".join(sorted({row["commit"] or "unknown" for row in rows}))
    quick = "calibration in bfloat16 (sums and pruning in float32), test text in TF32"
    how = quick if setup["forward"] == "bfloat16" else "float32"
    return (
        f"{content['names']['text']}, {'/'.join(map(str, windows))} windows of {setup['context']} tokens that do not "
        f"overlap; calibration {setup['samples']} x {setup['seqlen']} tokens of {content['names']['calibration']}, seeds "
        f"{', '.join(map(str, seeds))} (they draw other windows). Perplexity: mean over the seeds, in brackets the least "
        f"and the greatest. Ratio: perplexity over that of uniform with the same pruner, sparsity and seed, "
        f"geometric mean over the seeds; 95 % interval from the windows' paired differences, each averaged over the seeds "
        f"first: it holds for other text with these calibration draws, not for other draws. KL: mean over positions of "
        f"KL(dense || cut), nats. All settings are defaults; `auto` and `evo` had {searched} each (3 minutes: on GPUs that "
        "eight processes shared, too little to compare more than a few plans; 9 minutes: on GPUs that two to five searches "
        "shared) and saw calibration text only, that of seed 0: their plans are cut with the other seeds, too. "
        f"{', '.join(f'`{a}` gives the plans of `{b}`' for a, b in SAME.items())}. {how} on {devices}, commit "
        f"{commits}."
    )


def render_auto(content: dict[str, Any]) -> str:
    """What `auto` found beside uniform and the best of all others, evo among them, over the seeds that both have."""
    rows = Rows(content)
    head = ["model", "pruner", "cut", "uniform", "best other", "auto", "auto over the best other", "minutes"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for model, pruner, target in rows.places():
        if best := _best_other(rows, model, pruner, target):
            middle, low, high = ratio_interval(best[1])
            name = best[0] if best[0] != BASE else "uniform itself"
            told = [_mean(rows.of(model, each, pruner, target)) for each in (BASE, best[0], "auto")]
            told[1] += f" ({name})"
            minutes = rows.of(model, "auto", pruner, target)[0]["search"]
            told += [f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{minutes:g}"]
            lines.append(markdown_row([model, pruner, target, *told]))
    return "\n".join(lines)


def _best_other(rows: Rows, model: str, pruner: str, target: str) -> tuple[str, Floats] | None:
    """The other allocator that is best beside `auto`, and auto's nats a token above it by window."""
    others = [name for name in VARIANTS if name != "auto"]
    pairs = [(name, rows.difference(model, "auto", pruner, target, name)) for name in others]
    found = [(name, nats) for name, nats in pairs if nats is not None]
    return max(found, key=lambda pair: float(pair[1].mean())) if found else None


def _mean(found: dict[int, dict[str, Any]]) -> str:
    return number(float(np.mean([row["ppl"] for row in found.values()])))


def render_outliers(content: dict[str, Any]) -> str:
    """Where the difference to uniform comes from: the 5 % of the windows that carry most of it."""
    rows = Rows(content)
    head = ["model", "pruner", "cut", "allocator", "ratio", "windows better", "share of the worst 5 %", "ratio without"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for (model, pruner, target), variant in product(rows.places(), VARIANTS):
        found = rows.difference(model, variant, pruner, target)
        if variant != BASE and found is not None:
            share, rest = worst_share(found)
            told = [f"{np.exp(found.mean()):.3f}", f"{(found < 0).mean():.0%}", f"{share:.2f}", f"{rest:.3f}"]
            lines.append(markdown_row([model, pruner, target, variant, *told]))
    note = (
        "Windows better: share with a lower loss than under uniform. Share of the worst 5 %: how much of the summed "
        "difference in nats comes from the 5 % of the windows that differ most in its direction (0.05 to 0.15 where all "
        "windows differ alike; above 1 where the others go the other way). Ratio without: perplexity ratio over the rest."
    )
    return "\n".join([*lines, "", note])


def render_again(content: dict[str, Any]) -> str:
    """Cells measured twice: how much rounding alone moves one, by model and sparsity."""
    found: dict[tuple[str, str], list[float]] = {}
    for key, row in content["rows"].items():
        model, _, _, target, _ = key.split()
        first, second = row["ppl"]
        found.setdefault((model, target), []).append(float(np.log(first / second)))
    head = ("model", "cut", "cells", "first over second (95 %)", "scatter of one, robust", "largest ratio")
    lines = list[tuple[str, ...]]()
    for (model, target), listed in sorted(found.items(), reverse=True):
        logs = np.asarray(listed)
        middle, low, high = ratio_interval(logs)
        spread = robust_deviation(logs) / np.sqrt(2)  # each is the difference of two
        told = f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{spread:.1%}", f"{np.exp(np.abs(logs).max()):.2f}"
        lines.append((model, target, str(logs.size), *told))
    return markdown_table(Table("", head, tuple(lines)))


def plot(content: dict[str, Any], out: Path) -> None:
    """Ratio to uniform of every allocator with its interval: a panel for each model and sparsity, a mark for each pruner."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tailcut"  # the same file from the same numbers
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    rows, targets = Rows(content), tuple(reversed(SPARSITIES))
    seen = {name for model in rows.models for pruner in PRUNERS for name in rows.seen(model, pruner, targets)}
    names = [name for name in VARIANTS if name != BASE and name in seen]
    shape, size = (
        (len(rows.models), len(targets)),
        (4.0 * len(targets), (0.28 * len(names) + 0.9) * len(rows.models) + 0.5),
    )
    figure, panels = plt.subplots(*shape, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for line, model in zip(panels, rows.models, strict=True):
        for panel, target in zip(line, targets, strict=True):
            for offset, pruner in zip((-0.15, 0.15), PRUNERS, strict=True):
                _points(panel, rows, (model, pruner, target), names, offset)
            panel.axvline(1.0, color="0.6", linewidth=1)
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(
                ticker.LogLocator(subs=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0), numticks=12)
            )
            panel.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            panel.xaxis.set_minor_locator(ticker.NullLocator())
            panel.tick_params(axis="x", labelsize=8)
            panel.set_title(f"{model}, {float(target):.0%}", fontsize=9)
            panel.set_yticks(range(len(names)), names, fontsize=8)
            panel.invert_yaxis() if panel is panels[0][0] else None
    figure.legend(*panels[0][-1].get_legend_handles_labels(), fontsize=8, loc="outside upper right")
    figure.supxlabel("perplexity / perplexity of uniform (95 % interval over windows)", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)


def _points(panel: Any, rows: Rows, where: tuple[str, str, str], names: Sequence[str], offset: float) -> None:  # noqa: ANN401
    model, pruner, target = where
    differences = [(place, rows.difference(model, name, pruner, target)) for place, name in enumerate(names)]
    found = [(place, *ratio_interval(one)) for place, one in differences if one is not None]
    if found:
        places, middle, low, high = (np.array(column) for column in zip(*found, strict=True))
        sides = np.array([middle - low, high - middle])
        panel.errorbar(middle, places + offset, xerr=sides, fmt="o", markersize=3, linewidth=1, label=pruner)
