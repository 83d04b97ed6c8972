"""The release gate: limits against a measured result, with intervals, and nothing passes unmeasured.

What is compared is in `tailcut.bench.checks`, one file a check; what is demanded is a `tailcut.bench.policy.Policy`. A check passes
only if the whole interval is on the good side of its limit, fails only if it is wholly on the bad side, and is inconclusive
otherwise. An engine that was not measured makes the verdict inconclusive, a value that the result does not hold although a
limit names it fails.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from tailcut.bench import checks
from tailcut.bench.checks import Case, Subject
from tailcut.bench.checks._judging import missing, undecided
from tailcut.bench.policy import Policy, keys
from tailcut.results import BenchResult, Check, EngineResult, Outcome, PackageFacts, Verdict


def judge(subject: Subject | BenchResult, policy: Policy) -> Verdict:
    """Every limit that is stated becomes one check or more, in the policy's order; the worst check is the verdict."""
    subject = subject if isinstance(subject, Subject) else Subject(subject)
    subject = replace(subject, confidence=policy.confidence)
    engines = judged_engines(subject.result, policy)
    names = policy.judged
    found = [one for engine in engines for one in _unmeasured(subject.result, engine, policy)]
    absent = {one.engine for one in found}
    for name in names:
        per_engine = checks.load(name).PER_ENGINE
        for engine in engines if per_engine else ("",):
            limits = policy.of(name, engine)
            if limits is not None and engine not in absent:
                made = checks.load(name).check(replace(subject, engine=engine), limits)
                found += [replace(one, engine=engine) for one in made or (missing(name),)]
    return _verdict(found, subject.result, engines, policy)


def _verdict(found: list[Check], result: BenchResult, engines: tuple[str, ...], policy: Policy) -> Verdict:
    name = ", ".join(engines)
    if not found:
        return Verdict("pass", name, (), "no limits were given: nothing was judged", policy.shown())
    others = [one.engine for one in result.engines if one.engine not in engines]
    note = f"judged on {name}" + (f"; {', '.join(others)} for information" if others else "")
    return Verdict(_worst(found), name, tuple(found), note, policy.shown())


def judged_engines(result: BenchResult, policy: Policy) -> tuple[str, ...]:
    """Those that the policy names, else the first one of the result."""
    if policy.engines:
        return tuple(policy.engines)
    return (policy.engine or (result.engines[0].engine if result.engines else ""),)


def _worst(found: list[Check]) -> Outcome:
    outcomes = {check.outcome for check in found}
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


def _unmeasured(result: BenchResult, name: str, policy: Policy) -> list[Check]:
    """One inconclusive check in place of all that need an engine which was not measured."""
    if not any(checks.load(check).PER_ENGINE and policy.of(check, name) for check in policy.judged):
        return []
    engine = result.engine(name)
    if engine is not None and engine.status == "measured":
        return []
    reason = engine.reason if engine else "the result holds no measurement of it"
    return [replace(undecided("engine", f"{name}: not measured: {reason}"), engine=name)]


def self_test() -> tuple[tuple[str, bool], ...]:
    """(what was tried, whether the gate answered rightly): every check on seeded subjects whose verdict is known."""
    answers: list[tuple[str, bool]] = []
    for name in checks.names():
        with tempfile.TemporaryDirectory(prefix="tailcut-gate-") as folder:
            answers += _tried(name, checks.load(name).cases(Path(folder)))
    return tuple(answers)


def _tried(name: str, cases: tuple[Case, ...]) -> list[tuple[str, bool]]:
    found = [(f"{name}: {case.what}", _outcome(case) == case.outcome) for case in cases]
    outcomes = {case.outcome for case in cases}
    found.append((f"{name}: has a case that must fail and one that must pass", {"pass", "fail"} <= outcomes))
    keyed = {key for case in cases if case.outcome == "fail" for key in case.limits}
    unkeyed = [key for key, check in keys().items() if check == name and key not in keyed]
    found.append(
        (f"{name}: every limit has a case that must fail{(unkeyed and f', not {unkeyed}') or ''}", not unkeyed)
    )
    bare = [replace(case, subject=_bare(case.subject.result)) for case in cases]
    passing = [case.what for case in bare if _outcome(case) == "pass"]
    found.append((f"{name}: what was not measured never passes", not passing))
    return found


def _outcome(case: Case) -> Outcome:
    return judge(case.subject, Policy(case.limits, engine=case.subject.engine or None)).outcome


def _bare(result: BenchResult) -> Subject:
    """A result that says "measured" and holds nothing."""
    nothing = PackageFacts("", 0, 0.0, 0.0, 0)
    engine = EngineResult("seeded", "measured")
    return Subject(replace(result, dense=nothing, sparse=nothing, engines=(engine,), quality=()), "seeded")


def seeded_result(*, speedup: float, seed: int = 7) -> BenchResult:
    """A made-up result with realistic noise (5 % between blocks, 2 % within) and a known true speedup."""
    from tailcut.bench.checks._seeded import seeded_result as made

    return made(speedup=speedup, seed=seed)
