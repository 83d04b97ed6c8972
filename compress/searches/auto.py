"""The best plan that a stated time finds: every allocator compared, the best one refined, the finalists really cut.

1. `uniform` is cut as `tailcut compress` cuts it and judged: the yardstick, and how long such a judgement takes.
2. candidates: the plans of every allocator that the scores allow, in several settings, by the quick measure on little
   text; the better ones on more, the best on all of it (successive halving).
3. evolve: the best candidate is refined (see _evolve and _moves).
4. finals: the refined plan, the best candidates and uniform, all really cut, judged on windows that neither statistics
   nor search saw. The lowest divergence wins, so the result is no worse there than uniform or the best candidate.

Of the time that 1 leaves, finals get what they need, up to a quarter, but two at least; of the rest candidates get 30 %, evolution
70 %. Where that is too little to hear every allocator and every metric once at its defaults, they get up to 60 %: one search that heard 15 of 133
candidates lost to a metric's default (alpha-hat) that was not among them (docs/experiments.md, "The big table of allocators").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tailcut.allocation import Allocation
from tailcut.compress.searches import Task
from tailcut.compress.searches._candidates import Candidate, candidates
from tailcut.compress.searches._evolve import Evolved, Rules, Spent
from tailcut.compress.searches._grid import Grid
from tailcut.compress.searches._measures import FINAL, Measures
from tailcut.compress.searches._prepare import Subject, opened
from tailcut.compress.searches._report import allocation_of, signed
from tailcut.compress.searches.evo import refine
from tailcut.progress import Reporter

METRICS: Final = ("alpha_peak", "alpha_mid", "alpha_hat", "stable_rank", "magnitude", "wanda", "owl", "dlp")
REFINED: Final = "refined"
_STAGE: Final = "candidates"
_CANDIDATES: Final = 0.3  # share of the quick measurements' time
_FIRSTS: Final = 0.5  # share that may go to hearing every kind of candidate once,
_SIFTING: Final = 0.1  # and what the rest of this stage has at least after that
_FINALS: Final = 0.25  # share of the time after the first final that finals may take
_ROUNDS: Final = (0.5, 0.75, 1.0)  # of the candidates' share, until when each fidelity may take
_KEEP: Final = 4  # one in so many goes on to the next fidelity
_AT_LEAST: Final = 3


def search(task: Task, report: Reporter) -> Allocation:
    """The best plan that a stated time finds: plans of every allocator that the scores allow are compared by divergence from
    the dense model on held-out calibration text, the best is refined by evolution, and the finalists, uniform and the best
    allocator among them, are really cut before one is chosen. Shares out sparsity, with --pattern or --group N:M patterns of
    that mean, with --bits bits. Needs the model, a pruner and text. Measure several scores: each gives it more to choose
    from.
    """
    with opened(task, "auto", report) as ready:
        known, missing = candidates(task.scores, ready.subject.grid, task.settings)
        return _choose(ready.subject, ready.measures, known, missing)


@dataclass(frozen=True, slots=True)
class _Shares:
    """When parts end, in the measures' unit, and how many finals there are beside uniform."""

    firsts: float
    candidates: float
    evolution: float
    finals: int


def _choose(subject: Subject, measures: Measures, known: Sequence[Candidate], missing: dict[str, str]) -> Allocation:
    grid, uniform = subject.grid, known[0]
    results = {uniform.name: (measures.slow(uniform.allocation, uniform.name), uniform.allocation)}
    shares = _shares(measures)
    ranked = _halve(measures, grid, known, shares)
    best, _ = ranked[0]
    measures.until = shares.evolution
    refined = refine(measures, grid, grid.of(best.allocation), Rules(), subject.task.calibration.seed)
    ours = Candidate(REFINED, allocation_of(grid, refined.levels, subject.task.scores, "auto"))
    for place, candidate in enumerate(_finalists(grid, ours, ranked, known)[: shares.finals]):
        if place > 1 and not measures.by_count and measures.used + _seconds_a_final(measures) > measures.total:
            break
        results[candidate.name] = measures.slow(candidate.allocation, candidate.name), candidate.allocation
    winner = min(results, key=lambda name: results[name][0])
    finals = {name: divergence for name, (divergence, _) in results.items()}
    more = _said(winner, best.name, finals, refined, ranked)
    more |= {"without": ", ".join(missing) or "nothing", "candidates_known": str(len(known))}
    return signed(results[winner][1], "auto", subject, measures, more)


def _finalists(
    grid: Grid, ours: Candidate, ranked: Sequence[tuple[Candidate, float]], known: Sequence[Candidate]
) -> list[Candidate]:
    """What is cut beside uniform (the first known), in this order: without the time to compare all, the rest as they are listed."""
    heard = [candidate for candidate, _ in ranked if candidate is not known[0]]
    names = {candidate.name for candidate in heard}
    rest = [*heard, *(candidate for candidate in known[1:] if candidate.name not in names)]
    # a search that ended before its first step has nothing of its own
    return rest if (grid.of(ours.allocation) == grid.of(known[0].allocation)).all() else [ours, *rest]


def _shares(measures: Measures) -> _Shares:
    """After the first final."""
    wanted = measures.effort.finals - 1
    if measures.by_count:
        return _Shares(measures.total * _FIRSTS, measures.total * _CANDIDATES, measures.total, wanted)
    left = max(0.0, measures.total - measures.used)
    a_final = _seconds_a_final(measures)
    # the refined plan and the best candidate are always judged: without them there is no choice
    count = max(2, min(wanted, int(left * _FINALS / max(a_final, 1e-6))))
    quick = max(0.0, left - count * a_final)
    used = measures.used
    return _Shares(used + quick * _FIRSTS, used + quick * _CANDIDATES, used + quick, count)


def _seconds_a_final(measures: Measures) -> float:
    return measures.trace.spent[FINAL] / measures.trace.counts[FINAL]


def _halve(
    measures: Measures, grid: Grid, known: Sequence[Candidate], shares: _Shares
) -> list[tuple[Candidate, float]]:
    """Candidates by divergence: those that reached the highest fidelity first. Never empty: uniform is heard first."""
    spare = _SIFTING * (shares.evolution - measures.used)
    measures.until = shares.firsts
    firsts = _hear(measures, grid, [one for one in known if one.first], 0) or [(known[0], float("inf"))]
    begin = measures.used
    until = max(shares.candidates, begin + spare)
    measures.until = begin + (until - begin) * _ROUNDS[0]
    others = _hear(measures, grid, [one for one in known if not one.first], 0)
    ranked = heard = sorted([*firsts, *others], key=lambda item: item[1])
    for fidelity, share in enumerate(_ROUNDS[1:], 1):
        pool = [candidate for candidate, _ in heard[: max(_AT_LEAST, len(heard) // _KEEP)]]
        measures.until = begin + (until - begin) * share
        heard = _hear(measures, grid, pool, fidelity)
        again = {candidate.name for candidate, _ in heard}
        ranked = heard + [item for item in ranked if item[0].name not in again]
        if len(heard) < len(pool):
            break
    return ranked


def _hear(measures: Measures, grid: Grid, pool: Sequence[Candidate], fidelity: int) -> list[tuple[Candidate, float]]:
    """As many of the pool, in its order, as may be measured; best first."""
    heard: list[tuple[Candidate, float]] = []
    try:
        for candidate in pool:
            value = measures.quick(_STAGE, grid.of(candidate.allocation), fidelity, label=candidate.name)
            heard.append((candidate, value))
    except Spent:
        pass
    return sorted(heard, key=lambda item: item[1])


def _said(
    winner: str, start: str, finals: dict[str, float], refined: Evolved, ranked: list[tuple[Candidate, float]]
) -> dict[str, str]:
    ordered = sorted(finals.items(), key=lambda item: item[1])
    return {
        "winner": winner,
        "start": start,
        "finals": "; ".join(f"{name} {value:.6f}" for name, value in ordered),
        "candidates": str(len(ranked)),
        "generations": str(refined.generations),
        "refined_search_kl": f"{refined.fitness:.6f}",
        "wins": ", ".join(f"{move} {count}" for move, count in refined.wins.items()),
    }
