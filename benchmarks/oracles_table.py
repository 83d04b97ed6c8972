"""The tables of `oracles.py`, and the limits that its differences are held to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tailcut.bench.report import markdown_row

Rows = Sequence[Mapping[str, Any]]
_RANKED: Final = (
    "magnitude",
    "wanda",
    "wanda-variant",
    "ria",
)  # both sides rank by one score: ties are all they may differ in


@dataclass(frozen=True, slots=True)
class Check:
    """One number and what it may be at most."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit


def checks(content: Mapping[str, Any]) -> list[Check]:
    """Those of the comparisons that are there."""
    return [check for name, test in content["tests"].items() for check in _LIMITS.get(name, _none)(name, test["rows"])]


def _none(name: str, rows: Rows) -> Iterator[Check]:
    yield from ()


def _ranked(name: str, rows: Rows) -> Iterator[Check]:
    """No bit may differ but for ties and, where one side removes more, the weights between."""
    yield Check(f"{name}: bits that differ without a tie", sum(row["unexplained"] for row in rows), 0.0)
    surplus = max(abs(row["ours_zeros"] - row["theirs_zeros"]) / row["weights"] for row in rows)
    yield Check(f"{name}: more weights removed by one side, share of a matrix", surplus, 0.001)


def _errors(name: str, rows: Rows) -> Iterator[Check]:
    """1 %, the issue's limit; 2 % where the search itself ends elsewhere by rounding, as that of ALPS may."""
    worst = max(abs(row["ours"] / row["theirs"] - 1.0) for row in rows)
    yield Check(f"{name}: output error, relative to theirs", worst, 0.01)


def _exchange(name: str, rows: Rows) -> Iterator[Check]:
    """With the same variance the same exchanges: but for ties, the same mask."""
    share = sum(row["differ_with_their_variance"] for row in rows) / sum(row["weights"] for row in rows)
    yield Check(f"{name}: bits that differ given their variance, share", share, 1e-5)


def _estimators(name: str, rows: Rows) -> Iterator[Check]:
    """float32 sums of up to 576 logarithms: 1e-4 of alpha. `alpha_peak` is meant to differ."""
    same = [row for row in rows if row["metric"] != "alpha_peak"]
    worst = max(abs(row["ours_on_their_eigenvalues"] / row["theirs"] - 1.0) for row in same)
    yield Check(f"{name}: alpha on the same eigenvalues, relative", worst, 1e-4)


def _vectors(key: str, limit: float) -> Callable[[str, Rows], Iterator[Check]]:
    def found(name: str, rows: Rows) -> Iterator[Check]:
        yield Check(f"{name}: {key.replace('_', ' ')}, sparsity", max(row[key]["most"] for row in rows), limit)

    return found


_LIMITS: Final[Mapping[str, Callable[[str, Rows], Iterator[Check]]]] = dict.fromkeys(_RANKED, _ranked) | {
    "sparsegpt": _errors,
    "alps": _errors,
    "dsnot": _exchange,
    "alpha-metrics": _estimators,
    # float64 on both sides
    "alpha-ratios": _vectors("difference_on_their_metric", 1e-9),
    # an outlier more or less of 3.5 million, by float32 means: 3e-5 of a percent over a range of one percent and more
    "owl": _vectors("difference", 1e-5),
    # float32 means
    "dlp": _vectors("difference", 1e-5),
    # float32 scores of up to 884736 weights against float64
    "lamp": _vectors("difference_from_every_weight", 1e-4),
    # theirs rounds survivors to whole weights, in float32
    "erk": _vectors("difference", 1e-4),
}


def render(content: Mapping[str, Any]) -> str:
    """One table: an oracle and a target a line; below it where each oracle comes from."""
    head = ["oracle", "compared", "units", "difference", "cause"]
    lines = [markdown_row(head), "|" + " --- |" * len(head)]
    for name, test in content["tests"].items():
        lines += [markdown_row([name, *cells]) for cells in _SHOWN.get(name, lambda rows: iter(()))(test["rows"])]
    return "\n".join(lines)


_SHOWN: Final[Mapping[str, Callable[[Rows], Iterator[list[str]]]]] = {}
