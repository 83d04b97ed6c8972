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
    """Theirs within 1 %, matrix by matrix."""
    worst = max(abs(row["ours"] / row["theirs"] - 1.0) for row in rows)
    yield Check(f"{name}: output error, relative to theirs", worst, 0.01)


def _searched(name: str, rows: Rows) -> Iterator[Check]:
    """ALPS ends its search by counts of changed weights, which rounding moves: over all matrices no worse by 1 %."""
    whole = sum(row["ours"] for row in rows) / sum(row["theirs"] for row in rows)
    yield Check(f"{name}: summed output error above theirs", max(0.0, whole - 1.0), 0.01)


def _exchange(name: str, rows: Rows) -> Iterator[Check]:
    """With the same variance the same exchanges: but for ties, the same mask."""
    share = sum(row["differ_with_their_variance"] for row in rows) / sum(row["weights"] for row in rows)
    yield Check(f"{name}: bits that differ given their variance, share", share, 1e-5)


def _estimators(name: str, rows: Rows) -> Iterator[Check]:
    """float32 sums of up to 576 logarithms: 1e-4 of alpha. `alpha_peak` is meant to differ."""
    same = [row for row in rows if row["metric"] != "alpha_peak"]
    worst = max(abs(row["ours_on_their_eigenvalues"] / row["theirs"] - 1.0) for row in same)
    yield Check(f"{name}: alpha on the same eigenvalues, relative", worst, 1e-4)


def _ratios(name: str, rows: Rows) -> Iterator[Check]:
    """float64 on both sides. Where theirs passes 1, ours stays at the cap and spreads what is left: those differ by design."""
    possible = [row["difference_on_their_metric"]["most"] for row in rows if not row["above_one"]]
    yield Check(f"{name}: sparsity on their metric", max(possible, default=0.0), 1e-9)


def _vectors(key: str, limit: float) -> Callable[[str, Rows], Iterator[Check]]:
    def found(name: str, rows: Rows) -> Iterator[Check]:
        yield Check(f"{name}: {key.replace('_', ' ')}, sparsity", max(row[key]["most"] for row in rows), limit)

    return found


_LIMITS: Final[Mapping[str, Callable[[str, Rows], Iterator[Check]]]] = dict.fromkeys(_RANKED, _ranked) | {
    "sparsegpt": _errors,
    "alps": _searched,
    "dsnot": _exchange,
    "alpha-metrics": _estimators,
    "alpha-ratios": _ratios,
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
    """Masks, output errors and numbers in a table each; below them where everything comes from."""
    tests = content["tests"]
    parts = [
        _table(head, lines)
        for head, lines in ((_MASK, _masks(tests)), (_ERROR, _error_lines(tests)), (_NUMBER, _numbers(tests)))
    ]
    failed = [check.name for check in checks(content) if not check.passed]
    said = f"Above their limits: {'; '.join(failed)}." if failed else f"All {len(checks(content))} limits are met."
    return "\n\n".join([*(part for part in parts if part), f"{said} {_origin(content)}"])


_MASK: Final = [
    "masks",
    "cut",
    "matrices",
    "weights",
    "bits that differ",
    "ties",
    "ties but for float32",
    "one side cuts more",
    "other",
]
_ERROR: Final = ["output error, ours / theirs", "cut", "matrices", "summed", "least", "greatest", "bits that differ"]
_NUMBER: Final = ["numbers", "setting", "units", "greatest difference", "of"]


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join([markdown_row(head), "|" + " --- |" * len(head), *map(markdown_row, lines)]) if lines else ""


def _by_target(rows: Rows) -> Iterator[tuple[str, Rows]]:
    for target in dict.fromkeys(row["target"] for row in rows):
        yield target if ":" in target else f"{float(target):.0%}", [row for row in rows if row["target"] == target]


def _masks(tests: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for name in (name for name in (*_RANKED, "dsnot") if name in tests):
        for target, rows in _by_target(tests[name]["rows"]):
            start = [name, target, str(len(rows)), f"{sum(row['weights'] for row in rows):,}"]
            if name == "dsnot":
                own, alike = (sum(row[key] for row in rows) for key in ("differ", "differ_with_their_variance"))
                lines.append([*start, f"{own:,}", "", "", "", f"{alike:,} given their variance"])
            else:
                kinds = ("differ", "exact", "rounded", "counted", "unexplained")
                lines.append([*start, *(f"{sum(row[kind] for row in rows):,}" for kind in kinds)])
    return lines + _whole_run(tests)


def _whole_run(tests: Mapping[str, Any]) -> list[list[str]]:
    """Masks of a whole run, whose inputs drift apart by rounding; beside it how far our own do in other batches."""
    if "wanda-run" not in tests:
        return []
    rows = tests["wanda-run"]["rows"]
    weights, ours, batches = (sum(row[key] for row in rows) for key in ("weights", "differ", "differ_of_our_batches"))
    start = ["wanda, the whole model", "50%", str(len(rows)), f"{weights:,}", f"{ours:,}"]
    return [[*start, "", "", "", f"{batches:,} between our own runs of 1 and of all sequences at a time"]]


def _error_lines(tests: Mapping[str, Any]) -> list[list[str]]:
    lines = []
    for name in (name for name in ("sparsegpt", "alps") if name in tests):
        for target, rows in _by_target(tests[name]["rows"]):
            ratios = [row["ours"] / row["theirs"] for row in rows]
            whole = sum(row["ours"] for row in rows) / sum(row["theirs"] for row in rows)
            share = sum(row["differ"] for row in rows) / sum(row["weights"] for row in rows)
            found = [f"{ratio:.5f}" for ratio in (whole, min(ratios), max(ratios))]
            lines.append([name, target, str(len(rows)), *found, f"{share:.3%}"])
    return lines


def _numbers(tests: Mapping[str, Any]) -> list[list[str]]:
    lines = _estimator_lines(tests.get("alpha-metrics", {"rows": []})["rows"])
    lines += _ratio_lines(tests.get("alpha-ratios", {"rows": []})["rows"])
    for name, keys in _VECTORS.items():
        for row in tests.get(name, {"rows": []})["rows"]:
            for key, what in keys.items():
                setting = f"{row['sparsity']:.0%}" + (f", spread {row['spread']}" if "spread" in row else "")
                if key in row:
                    lines.append([name, setting, str(row[key]["units"]), f"{row[key]['most']:.1e}", what])
    return lines


_VECTORS: Final = {
    "owl": {
        "difference_of_scores": "outlier ratio, percent",
        "difference": "sparsity, compat",
        "difference_without_compat": "sparsity",
    },
    "dlp": {"difference": "sparsity, compat", "difference_without_compat": "sparsity"},
    "lamp": {"difference_from_every_weight": "sparsity, from every weight", "difference": "sparsity, from the curve"},
    "erk": {"difference": "sparsity"},
}


def _estimator_lines(rows: Rows) -> list[list[str]]:
    lines = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        mine = [row for row in rows if row["metric"] == metric]
        for key, what in (("ours_on_their_eigenvalues", "their eigenvalues"), ("ours", "our eigenvalues")):
            gaps = [abs(row[key] / row["theirs"] - 1.0) for row in mine]
            loose = sum(gap > _LOOSE for gap in gaps)
            beyond = f"; {loose} above {_LOOSE:g}" if loose else ""
            lines.append([f"{metric}, relative", "no text", str(len(mine)), f"{max(gaps):.1e}{beyond}", what])
    return lines


_LOOSE: Final = 1e-3


def _ratio_lines(rows: Rows) -> list[list[str]]:
    """The greatest over the settings; those where theirs passes 1, which no matrix can lose, apart."""
    lines = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        for over in (False, True):
            mine = [row for row in rows if row["metric"] == metric and bool(row["above_one"]) == over]
            units = str(mine[0]["difference"]["units"]) if mine else ""
            setting = f"{len(mine)} settings" + (", in which theirs passes 1" if over else "")
            for key, what in (
                (("difference_on_their_metric", "their alpha"), ("difference", "our alpha")) if mine else ()
            ):
                most = max(row[key]["most"] for row in mine)
                lines.append([f"alpha: sparsity by {metric}", setting, units, f"{most:.1e}", what])
    return lines


def _origin(content: Mapping[str, Any]) -> str:
    text, machine = content["calibration"], content["machine"]
    found = {_source(test["source"]) for test in content["tests"].values()}
    return (
        f"{content['model']['name']}, float32; {text['samples']} x {text['seqlen']} tokens of {text['text']}, seed "
        f"{text['seed']}; torch {machine['torch']}, transformers {machine['transformers']}, commit {machine['commit']}. Theirs: "
        f"{'; '.join(sorted(found, key=str.lower))}."
    )


def _source(source: Mapping[str, Any]) -> str:
    commit = source["commit"][:7] if source["commit"] else "of an unknown commit"
    return f"{source['repository']} {commit} ({source['file']}: {', '.join(source['functions'])})"
