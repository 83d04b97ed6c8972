"""github-action-benchmark's own format: a list of name, unit, value, and optionally range and extra (its README).

The action alerts when a value is worse than the last one of the same name. Names carry the machine (`_numbers` says
why), and what is drawn is not what is judged: an alert there compares two single medians across releases, the gate
compares two packages measured in turn on one machine.
"""

import json

from tailcut.bench.outputs._numbers import Number, machine_id, numbers
from tailcut.bench.text import one_line
from tailcut.results import BenchResult, Verdict


def series(verdict: Verdict, result: BenchResult, *, bigger_is_better: bool) -> str:
    """The numbers for which more (or less) is better, as the action's JSON."""
    chosen = [number for number in numbers(result) if number.bigger_is_better == bigger_is_better]
    extra = f"{one_line(result.machine.cpu)}, {result.workload.threads} threads, gate: {verdict.outcome}"
    return json.dumps([_entry(number, machine_id(result), extra) for number in chosen], indent=1) + "\n"


def _entry(number: Number, machine: str, extra: str) -> dict[str, object]:
    where = f"{number.engine}: " if number.engine else ""
    entry: dict[str, object] = {
        "name": f"{where}{number.name} [{machine}]",
        "unit": number.unit,
        "value": float(f"{number.value:.6g}"),
        "extra": extra,
    }
    if number.low is not None and number.high is not None:
        entry["range"] = f"{number.low:.3g} to {number.high:.3g}"
    return entry
