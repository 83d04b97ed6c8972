"""JSON in and out: what is written is read back, and everything else is one sentence that names the field."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailcut import codec
from tailcut.allocation import NM, Allocation, Budget, Dense, LayerPlan, LayerScore, LayerScores, Unstructured
from tailcut.errors import InputError

PATTERNS = st.one_of(
    st.just(Dense()),
    st.floats(0, 1).map(Unstructured),
    st.tuples(st.integers(1, 8), st.integers(0, 8)).map(lambda pair: NM(pair[0], pair[0] + pair[1])),
)
PLANS = st.builds(LayerPlan, PATTERNS, st.sampled_from([None, 2, 3, 4, 8]))
ALLOCATIONS = st.builds(
    Allocation, st.dictionaries(st.text(max_size=20), PLANS, max_size=5), st.dictionaries(st.text(), st.text())
)


@given(ALLOCATIONS)
def test_allocation_round_trips(allocation: Allocation) -> None:
    assert codec.from_json(Allocation, codec.to_json(allocation)) == allocation


def test_scores_round_trip_through_a_file(tmp_path: Path) -> None:
    layer = LayerScore("model.layers.0.q", 0, (4, 8), {"alpha": 3.25})
    scores = LayerScores("f00", (layer,), 99, {"tool": "x"})
    codec.save(scores, tmp_path / "s.json")
    assert codec.load(LayerScores, tmp_path / "s.json") == scores
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


SIZES = st.integers(0, 4)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CURVES = st.dictionaries(st.text(max_size=8), st.lists(NUMBERS, min_size=2, max_size=9).map(tuple), max_size=2)


@st.composite
def scores_with_curves_and_pairs(draw: st.DrawFn) -> LayerScores:
    layers = tuple(LayerScore(f"m{i}", i, (2, 3), {"a": draw(NUMBERS)}, draw(CURVES)) for i in range(draw(SIZES)))
    half = {(i, j): draw(NUMBERS) for i in range(len(layers)) for j in range(i, len(layers))}
    rows = tuple(tuple(half[min(i, j), max(i, j)] for j in range(len(layers))) for i in range(len(layers)))
    return LayerScores("f00", layers, 6, {}, draw(st.sampled_from([{}, {"als": rows}])))


@given(scores_with_curves_and_pairs())
def test_curves_and_pairs_round_trip_exactly(scores: LayerScores) -> None:
    assert codec.from_json(LayerScores, codec.to_json(scores)) == scores


def test_scores_written_before_curves_and_pairs_are_read() -> None:
    body = json.loads(codec.to_json(LayerScores("f00", (LayerScore("m", 0, (4, 8), {"alpha": 3.25}),), 99)))
    del body["pairs"], body["layers"][0]["curves"]
    read = codec.from_json(LayerScores, json.dumps(body))
    assert (read.pairs, read.layers[0].curves) == ({}, {})


def test_bad_pairs_in_a_file_are_one_sentence() -> None:
    body = json.loads(codec.to_json(LayerScores("f00", (LayerScore("m", 0, (4, 8), {}),), 99)))
    body["pairs"] = {"als": [[1.0, 0.5]]}
    with pytest.raises(InputError, match=r"pairs als are 1 rows of 2, expected 1 x 1") as caught:
        codec.from_json(LayerScores, json.dumps(body))
    assert "\n" not in str(caught.value)


def text_of(**changes: object) -> str:
    """An empty allocation's JSON with some keys changed."""
    return json.dumps(json.loads(codec.to_json(Allocation({}, {}))) | changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (text_of(extra=1), r"file: field extra: "),
        (text_of(schema_version=2), r"schema version 2.*reads version 1"),
        (text_of(schema="tailcut/Manifest"), r"expected schema 'tailcut/Allocation', got 'tailcut/Manifest'"),
        (text_of(plans={"a": {"pattern": {"kind": "nm", "keep": "2", "block": 4}}}), r"plans\.a\.pattern.*keep"),
        (text_of(plans={"a": {"pattern": {"kind": "lasso"}}}), r"plans\.a\.pattern"),
        (text_of(plans={"a": {"pattern": {"kind": "dense"}, "bits": 5}}), r"plans\.a\.bits"),
        (text_of(plans=None), r"field plans"),
        (text_of()[:-4], r"not valid JSON"),
        ("", r"not valid JSON"),
        ("[1, 2]", r"expected a JSON object, got list"),
        ("null", r"expected a JSON object, got NoneType"),
        ("[" * 100_000, r"not valid JSON"),
        (text_of(provenance={})[:-1] + ', "x": NaN}', r"NaN is not a JSON number"),
        (b"\xff\xfe\x00", r"not valid JSON"),
    ],
)
def test_bad_text_is_one_sentence(text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        codec.from_json(Allocation, text, "file")
    assert "\n" not in str(caught.value)


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json: cannot read a Allocation \(No such file"):
        codec.load(Allocation, tmp_path / "nothing.json")


def two(**pairs: tuple[tuple[float, ...], ...]) -> LayerScores:
    return LayerScores("f00", tuple(LayerScore(name, 0, (1, 1), {}) for name in "ab"), 2, {}, pairs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LayerScore("q", 0, (1, 1), {}, {"wanda": (0.0, float("nan"))}), "q: the curve wanda holds nan"),
        (lambda: LayerScore("q", 0, (1, 1), {}, {"wanda": (1.0,)}), "q: the curve wanda has 1 points, at least 2"),
        (lambda: two(als=((1.0, 0.5), (0.5, float("inf")))), "row 1 of the pairs als holds inf"),
        (lambda: two(als=((1.0, 0.5),)), "pairs als are 1 rows of 2, expected 2 x 2"),
        (lambda: two(als=((1.0,), (0.5, 1.0))), "pairs als are 2 rows of 1/2, expected 2 x 2"),
        (lambda: two(als=((1.0, 0.5), (0.4, 1.0))), "pairs als are not symmetric at 0, 1"),
        (lambda: Budget(1.2), r"sparsity must be in \[0, 1\), got 1\.2; it is a fraction"),
        (lambda: Budget(-0.1), "got -0.1"),
        (lambda: Budget(float("nan")), "got nan"),
        (lambda: Budget(0.9, cap=0.5), r"0\.9 cannot be met.*cap of 0\.5"),
        (lambda: Budget(0.5, cap=0.0), r"cap must be in \(0, 1\]"),
        (lambda: NM(0, 4), "got 0:4"),
        (lambda: NM(5, 4), "got 5:4"),
        (lambda: Unstructured(1.5), r"got 1\.5"),
    ],
)
def test_bad_values_cannot_be_made(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=words):
        make()
