"""What an allocation says about the search that made it."""

from collections.abc import Mapping

from tailcut.allocation import Allocation, LayerScores
from tailcut.compress.allocators._budget import origin, plan
from tailcut.compress.searches._grid import Grid, Levels
from tailcut.compress.searches._measures import Measures
from tailcut.compress.searches._prepare import Subject


def allocation_of(grid: Grid, levels: Levels, scores: LayerScores, name: str) -> Allocation:
    """The plan of these levels, with the exact budget."""
    return plan(scores, grid.sparsities(levels), origin(name, scores, grid.budget))


def signed(found: Allocation, name: str, subject: Subject, measures: Measures, more: Mapping[str, str]) -> Allocation:
    """The plan with the provenance of the search: how it was measured, what it found, where its time went."""
    task, trace, texts = subject.task, measures.trace, subject.texts
    effort = task.effort
    asked = (
        {"minutes": repr(effort.minutes)} if effort.evaluations is None else {"evaluations": str(effort.evaluations)}
    )
    said = {
        "pruner": task.pruner,
        **asked,
        "step": repr(effort.step),
        "calibration": texts.calibration.name,
        "calibration_tokens_sha256": texts.calibration.sha256,
        "seed": str(task.calibration.seed),
        "search_tokens": " ".join(str(measures.proxy.tokens(range(count))) for count in texts.fidelities),
        "final_tokens": str(texts.final.size),
        **more,
        "measurements": ", ".join(f"{stage} {count}" for stage, count in trace.counts.items()),
        # of a search that is counted in evaluations the result must not depend on the clock
        **({} if measures.by_count else {"seconds": _seconds(trace.spent)}),
        "search": subject.fingerprint,
    }
    return Allocation(found.plans, origin(name, task.scores, task.budget, **said))


def _seconds(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in spent.items())
