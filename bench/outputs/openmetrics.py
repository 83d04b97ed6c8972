"""OpenMetrics text: GitLab's metrics report compares it with the target branch, and Prometheus' tools read it.

Format: the OpenMetrics 1.0 exposition, gauges only. The machine is a label, so values of two machines are two series.
"""

from tailcut.bench.load_values import LoadResult
from tailcut.bench.outputs._numbers import Number, machine_id, numbers
from tailcut.bench.text import one_line
from tailcut.results import BenchResult, Verdict

HELP = "gauges for GitLab (artifacts:reports:metrics) and Prometheus"
_OUTCOMES = ("pass", "fail", "inconclusive")


def render(verdict: Verdict, result: BenchResult, load: LoadResult | None = None) -> str:
    machine = machine_id(result)
    families: dict[str, list[Number]] = {}
    for number in numbers(result):
        families.setdefault(number.key, []).append(number)
    lines = ["# TYPE tailcut_gate stateset", "# HELP tailcut_gate The gate's verdict."]
    lines += [
        f"tailcut_gate{_labels(engine=verdict.engine, machine=machine, tailcut_gate=name)} {int(name == verdict.outcome)}"
        for name in _OUTCOMES
    ]
    for key, members in families.items():
        # an engine may be listed once only, so every label set of a family is its own
        lines += [f"# TYPE tailcut_{key} gauge", f"# HELP tailcut_{key} {_escape(members[0].name)}, {members[0].unit}."]
        lines += [f"tailcut_{key}{_labels(engine=one.engine, machine=machine)} {one.value:.6g}" for one in members]
    return "\n".join([*lines, "# EOF", ""])


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items() if value) + "}"


def _escape(text: str) -> str:
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"')
