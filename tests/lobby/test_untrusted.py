"""Plain data from files nobody vouches for: what is refused, and that the refusal is one short sentence."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailcut.errors import InputError
from tailcut.untrusted import MAX_DEPTH, parse_json, parse_yaml, read_limited, require_visible

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)  # a loaded machine is no failure
@given(PLAIN)
def test_honest_json_reads_as_the_standard_library_reads_it(value: Any) -> None:
    assert parse_json(json.dumps(value), "file") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 10**6, "nested deeper than 64"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested deeper than 64"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        ('{"a": 1, "\\u0061": 2}', "'a' appears twice"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("[1e999]", "1e999 is beyond float64"),
        ("[" + "9" * 5000 + "]", "an integer of 5000 digits"),
        ("[1] trailing", "Extra data"),
        (b'["\xff"]', "can't decode"),
        ('["a"]'.encode("utf-16"), "can't decode"),
        ('["', "Unterminated string"),
    ],
)
def test_json_that_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_json(text, "file")
    assert str(caught.value).startswith("file: not valid JSON")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_brackets_in_strings_are_text() -> None:
    assert parse_json(json.dumps(["[" * 1000, '\\"{' * 100]), "file")[0] == "[" * 1000


def test_a_hostile_string_is_scanned_once() -> None:
    """Quadratic scanning of 2 MB of quotes would take an hour; linear takes well under a second."""
    began = time.process_time()
    with pytest.raises(InputError):
        parse_json('"' + '\\"' * 10**6, "file")
    assert time.process_time() - began < 30


def test_json_as_deep_as_allowed_is_read() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "line 1: anchors and aliases"),
        ("a: !!python/object/apply:os.system ['true']", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !!float .nan", "the tag"),
        ("a: 1\na: 2", "'a' appears twice"),
        ("1: 2", "the name 1 is not text"),
        ("? [a]\n: 2", "is not text"),
        ("~: 2", "the name None is not text"),
        ("[" * 1000, "nested deeper than 64"),
        ("a: 1e999", "beyond float64"),
        ("a: " + "9" * 5000, "5000 digits"),
        ("a: [1, 2", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("a: 1\n---\na: 2", "not valid YAML"),
        ("#" * 300_000, "larger than 262 kB"),
        (b"a: \xff", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_yaml_that_is_refused(text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_yaml(text, "file")
    assert "\n" not in str(caught.value)


def test_plain_scalars_are_those_of_yaml_1_2() -> None:
    text = "{a: 2:4, b: on, c: 1e-3, d: 007, e: -3, f: .5, g: true, h: ~, i: , j: 2020-01-01, k: .inf, l: '1'}"
    assert parse_yaml(text, "file") == {
        "a": "2:4", "b": "on", "c": 1e-3, "d": 7, "e": -3, "f": 0.5, "g": True, "h": None, "i": None, "j": "2020-01-01",
        "k": ".inf", "l": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    "hidden", ["\u202e", "\u200b", "\x1b", "\ufeff", "\u2066", "\ud800", "\x85", "\U000e0041", "\u200d"]
)
@pytest.mark.parametrize("shape", ["{}", ["a", "{}"], {"b": {"c": "{}"}}, {"{}": 1}, {"b": [{"{}": 1}]}])
def test_what_is_not_shown_is_refused_wherever_it_stands(hidden: str, shape: Any) -> None:
    value = json.loads(json.dumps(shape).replace("{}", json.dumps(f"tail{hidden}cut")[1:-1]))
    with pytest.raises(InputError, match=rf"file: .* the invisible character U\+{ord(hidden):04X}"):
        require_visible(value, "file")


def test_every_script_is_shown() -> None:
    require_visible({"Übersicht": ["模型", "модель", "نموذج", "a\tb\nc"]}, "file")


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 34)  # sparse: 16 GiB that take no disk
    with pytest.raises(InputError, match=r"larger than 268 MB"):
        read_limited(path)
    assert read_limited(Path("/dev/null"), 5) == b""
