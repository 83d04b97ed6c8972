"""Sentences about a sweep: only what intervals allow, and never about what was not measured."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tailcut.results import Ratio
from tailcut.sweep_advice import advise, better, relation, undominated
from tailcut.sweep_points import SweepPoint

Point = Callable[..., SweepPoint]
ends = st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(
    lambda pair: Ratio(sum(pair) / 2, min(pair), max(pair), 0.95)
)


def int4(point: Point) -> SweepPoint:
    return point(None, 0.0, (2.0, 2.2), (1.05, 1.07), weights="int4", engine="onnxruntime-int4")


def test_the_sentence_names_where_dense_int4_is_better_and_what_cannot_be_told(sweep_point: Point) -> None:
    points = [
        int4(sweep_point),
        sweep_point("alpha", 0.5, (1.2, 1.4), (1.08, 1.12)),
        sweep_point("alpha", 0.6, (1.6, 1.9), (1.20, 1.30)),
        sweep_point("alpha", 0.7, (2.1, 2.5), (1.50, 1.60)),
        sweep_point("alpha", 0.8, (3.0, 3.4), (2.50, 2.90)),
    ]
    (sentence,) = advise(points).findings
    assert "slower at 50 % and 60 %, cannot be told apart at 70 %, faster at 80 %" in sentence
    # at 70 % its perplexity is worse, but the speeds overlap
    assert sentence.endswith("dense int4 is better up to 60 %, and not clearly so at 70 %.")
    assert "the cut model is better" not in sentence


def test_the_fastest_within_a_limit_is_recommended_and_ties_are_named(sweep_point: Point) -> None:
    points = [int4(sweep_point), sweep_point("alpha", 0.5, (2.1, 2.4), (0.99, 1.04))]
    (sentence,) = advise(points, max_ppl_ratio=1.1).recommendation
    assert "cannot be told apart in speed" in sentence
    assert "onnxruntime-int4) is the one without any cutting" in sentence
    (sentence,) = advise([points[0], sweep_point("alpha", 0.5, (2.3, 2.6), (0.99, 1.04))], 1.1).recommendation
    assert sentence.startswith("Within 1.1 times the dense perplexity: alpha 50 % float32 (tailcut)")
    assert sentence.endswith("is the fastest.")
    (sentence,) = advise(points, max_ppl_ratio=1.03).recommendation  # 1.04 and 1.07 reach beyond it
    assert sentence.startswith("No point keeps its perplexity below 1.03")


def test_points_without_a_perplexity_or_a_speed_are_not_recommended(sweep_point: Point) -> None:
    blind = sweep_point("alpha", 0.9, (9.0, 9.5), None)
    failed = sweep_point("alpha", 0.5, None, (1.0, 1.1))
    assert advise([blind, failed], 2.0).recommendation == (
        "No point has both a speed and a perplexity, so nothing is recommended.",
    )
    assert advise([failed]).findings == ()


def test_the_same_package_on_a_faster_engine_is_better(sweep_point: Point) -> None:
    slow = sweep_point("alpha", 0.6, (1.0, 1.1), (1.2, 1.3), engine="onnxruntime")
    fast = replace(slow, speedup=Ratio(2.0, 1.9, 2.1, 0.95), engine="tailcut")
    assert better(fast, slow)
    assert undominated([slow, fast]) == [fast]


@settings(max_examples=300, deadline=None)
@given(ends, ends, ends, ends)
def test_nothing_is_claimed_where_both_intervals_overlap(a: Ratio, b: Ratio, c: Ratio, d: Ratio) -> None:
    one, other = (_point(speed, quality) for speed, quality in ((a, b), (c, d)))
    assert not (better(one, other) and better(other, one))
    if better(one, other):
        speed, quality = relation(a, c), relation(b, d)
        assert "unclear" not in {speed, quality} or (speed == "above" and b == d) or (quality == "below" and a == c)
    overlap = max(a.low, c.low) <= min(a.high, c.high)
    assert (relation(a, c) == "unclear") == overlap


def _point(speed: Ratio, quality: Ratio) -> Any:
    """Only what `better` reads."""

    class Seen:
        speedup, perplexity_ratio = speed, quality

    return Seen()
