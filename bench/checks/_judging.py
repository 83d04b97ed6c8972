"""From a value and a limit to a `Check`: the one place where pass, fail and inconclusive are decided."""

from typing import Final, Literal

from tailcut.bench.checks import Subject
from tailcut.results import Check, Outcome, Ratio

_RELATION: Final = {True: "at least", False: "at most"}


def interval(
    name: str,
    value: Ratio | None,
    limit: float,
    *,
    at_least: bool,
    confidence: float,
    unit: str = "",
    why_missing: str = "",
    doubt: str = "",
) -> Check:
    """An interval against a limit. An interval of less confidence than the policy asks for decides nothing.

    unit: written behind the numbers. why_missing: said of a value that is None. doubt: why nothing may rest on the value.
    """
    if value is None:
        return missing(name, limit, why_missing)
    passes = value.low >= limit if at_least else value.high <= limit
    fails = value.high < limit if at_least else value.low > limit
    outcome: Outcome = "pass" if passes else "fail" if fails else "inconclusive"
    sentence = (
        f"{name} {_shown(value.value)}{unit} ({value.confidence:.0%} interval {_shown(value.low)} to "
        f"{_shown(value.high)}), {_RELATION[at_least]} {limit:g}{unit} is required"
    )
    if doubt:
        outcome = "inconclusive"
        sentence += f"; {doubt}"
    elif value.confidence < confidence:
        outcome = "inconclusive"
        sentence += f"; the policy asks for {confidence:.0%} intervals: bench again with that confidence"
    elif outcome == "inconclusive":
        sentence += "; the interval straddles the limit: more blocks or a quieter machine would decide"
    return Check(name, outcome, limit, value.value, value.low, value.high, sentence)


def timed(
    subject: Subject,
    phase: Literal["prefill", "decode"],
    name: str,
    value: Ratio | None,
    limit: float,
    *,
    at_least: bool,
    unit: str = "",
    why_missing: str = "",
) -> Check:
    """An interval of times of the engine. Times that the bench itself calls too disturbed decide nothing."""
    procedure = subject.measured.procedure(phase)
    doubt = "the machine was disturbed in nearly all blocks: bench again when it is quieter"
    return interval(
        name,
        value,
        limit,
        at_least=at_least,
        confidence=subject.confidence,
        unit=unit,
        why_missing=why_missing,
        doubt=doubt if procedure is not None and procedure.loud else "",
    )


def exact(
    name: str, value: float | None, limit: float, *, at_least: bool, slack: float = 0.0, unit: str = "", also: str = ""
) -> Check:
    """A number without noise against a limit. also: said behind it, such as where the number is from."""
    if value is None:
        return missing(name, limit)
    good = value >= limit - slack if at_least else value <= limit + slack
    said = f"{name} {_shown(value)}{unit}{also and f' ({also})'}, {_RELATION[at_least]} {limit:g}{unit} is required"
    return Check(name, "pass" if good else "fail", limit, value, value, value, said)


def flag(name: str, good: bool, sentence: str) -> Check:
    """Something that is so or is not."""
    return Check(name, "pass" if good else "fail", None, None, None, None, sentence)


def undecided(name: str, sentence: str, limit: float | None = None) -> Check:
    """What was measured but cannot be judged here."""
    return Check(name, "inconclusive", limit, None, None, None, sentence)


def missing(name: str, limit: float | None = None, why: str = "") -> Check:
    """A limit on something that was not measured: that is a mistake in the pipeline, never a pass."""
    stated = f"the limit {limit:g}" if limit is not None else "a limit"
    sentence = f"{name} has {stated} but {why or 'the result does not hold it'}"
    return Check(name, "fail", limit, None, None, None, sentence)


def _shown(value: float) -> str:
    """Three decimals near 1, three digits where it is small or large."""
    return (
        f"{value:.3f}"
        if 0.01 <= abs(value) < 1000 or value == 0
        else f"{value:.3g}"
        if abs(value) < 1
        else f"{value:.0f}"
    )
