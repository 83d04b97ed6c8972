"""What an allocation says about the search that made it."""

from collections.abc import Mapping

from tailcut.allocation import Allocation, LayerPlan, LayerScores
from tailcut.compress.allocators import nm_mixed
from tailcut.compress.allocators._bits import facts_of
from tailcut.compress.allocators._budget import origin
from tailcut.compress.searches._grid import Grid
from tailcut.compress.searches._ladder import Levels
from tailcut.compress.searches._measures import Measures
from tailcut.compress.searches._prepare import Subject


def allocation_of(grid: Grid, levels: Levels, scores: LayerScores, name: str) -> Allocation:
    """The plan of these levels, with the exact budget."""
    return Allocation(grid.plans(levels), origin(name, scores, grid.budget))


def signed(found: Allocation, name: str, subject: Subject, measures: Measures, more: Mapping[str, str]) -> Allocation:
    """The plan with the provenance of the search: how it was measured, what it found, where its time went."""
    task, trace, texts = subject.task, measures.trace, subject.texts
    effort = task.effort
    asked = (
        {"minutes": repr(effort.minutes)} if effort.evaluations is None else {"evaluations": str(effort.evaluations)}
    )
    quantiser = {} if subject.method.quantiser is None else {"quantiser": task.quantiser}
    said = {
        "pruner": task.pruner,
        **quantiser,
        **_planned(subject, found.plans),
        **asked,
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


def _planned(subject: Subject, plans: Mapping[str, LayerPlan]) -> dict[str, str]:
    """What the ladder was, and how many matrices stand on each of its levels where these are few."""
    match subject.grid.ladder.kind:
        case "sparsity":
            return {"step": repr(subject.task.effort.step)}
        case "nm":
            return {"group": str(round(1.0 / subject.grid.ladder.unit)), **nm_mixed.summary(list(plans.values()))}
        case "bits":
            return facts_of(plans, subject.task.scores.layers, subject.task.budget)


def _seconds(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in spent.items())
