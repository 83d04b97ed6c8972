"""Policy files: what is read, what is refused and in which words, and the published schema."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailcut import codec
from tailcut.bench import checks
from tailcut.bench.policy import Policy, keys, make_policy, read_policy, schema
from tailcut.errors import InputError

DOCS = Path(__file__).parents[2] / "docs"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def test_a_policy_is_read_with_flags_on_top(tmp_path: Path) -> None:
    path = written(
        tmp_path, "version: 1\nlimits: {min_speedup: 1.5, pattern: 2:4}\nengines:\n  a: {max_tpot_ms: 40}\n  b:\n"
    )
    policy = read_policy(path, {"min_speedup": 2.0})
    assert policy == Policy({"min_speedup": 2.0, "pattern": "2:4"}, {"a": {"max_tpot_ms": 40}, "b": {}})
    assert policy.judged == ("speedup", "engagement", "pattern", "tpot")
    assert policy.of("tpot", "b") is None
    assert policy.shown() == {"min_speedup": 2.0, "pattern": "2:4", "a.max_tpot_ms": 40}


def test_one_engine_takes_its_own_limits_along(tmp_path: Path) -> None:
    text = "version: 1\nlimits: {max_tpot_ms: 40}\nengines:\n  a: {max_tpot_ms: 20}\n  b: {max_tpot_ms: 30}\n"
    path = written(tmp_path, text)
    assert read_policy(path, engine="b") == Policy({"max_tpot_ms": 30}, engine="b")
    assert read_policy(path, {"max_tpot_ms": 5}, engine="b") == Policy({"max_tpot_ms": 5}, engine="b")
    assert read_policy(path, {"max_tpot_ms": 5}).engines == {"a": {}, "b": {}}  # a flag counts for all of them
    assert read_policy(path, engine="c") == Policy({"max_tpot_ms": 40}, engine="c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("limits: {min_speedup: 1.5}", "a policy begins with `version: 1`"),
        ("version: 2", "version 2 is not known"),
        ("version: 1\nlimit: {min_speedup: 2}", "unknown setting 'limit'; did you mean limits"),
        ("version: 1\nmin_speedup: 2", "belongs under limits"),
        ("version: 1\nlimits: {min_spedup: 2}", "unknown limit 'min_spedup'; did you mean min_speedup"),
        ("version: 1\nlimits: {quite_else: 2}", "unknown limit 'quite_else'; known are .*max_kl"),
        ("version: 1\nlimits: {min_speedup: fast}", "min_speedup"),
        ("version: 1\nlimits: {min_speedup: '2'}", "min_speedup"),
        ("version: 1\nlimits: {min_speedup: true}", "min_speedup"),
        ("version: 1\nlimits: {min_speedup: -1}", "min_speedup.*greater than 0"),
        ("version: 1\nlimits: {min_speedup: .inf}", "min_speedup"),
        ("version: 1\nlimits: {min_sparsity: 70}", "min_sparsity.*less than 1"),
        ("version: 1\nlimits: {verify_files: 1}", "verify_files"),
        ("version: 1\nlimits: {pattern: half}", "pattern 'half' is not N:M"),
        ("version: 1\nlimits: [min_speedup]", "limits is a mapping"),
        ("version: 1\nengines: {a: {max_size_mb: 4}}", "max_size_mb is of the package, not of engine a"),
        ("version: 1\nengines: {a: 4}", "engines.a is a mapping"),
        ("version: 1\nengine: a\nengines: {b: {}}", "not both"),
        ("version: 1\nconfidence: 95", r"confidence must be in \[0.5, 1\)"),
        ("version: 1\nengine: a\u202eb", "invisible character U\\+202E"),
        ("- version: 1", "a policy is a mapping of settings, got list"),
        ("version: 1\nversion: 1", "'version' appears twice"),
        ("version: 1\nlimits: &a {min_speedup: 2}", "anchors"),
        ("", "got NoneType"),
    ],
)
def test_a_policy_that_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_policy(written(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "policy.yaml"))
    assert "\n" not in str(caught.value)


def test_false_and_null_leave_a_limit_out() -> None:
    assert not make_policy({"version": 1, "limits": {"min_speedup": None, "verify_files": False}}, "p").stated
    assert not make_policy({"version": 1}, "p").stated
    policy = Policy({"min_speedup": 2.0, "require_engagement": False})
    assert policy.of("engagement") is None
    assert Policy({"min_speedup": 2.0}).of("engagement") is not None


VALUES = {
    "pattern": st.sampled_from(["2:4", "1:4", "plan"]),
    "verify_files": st.booleans(),
    "require_engagement": st.booleans(),
}
SHARES = ("min_sparsity", "max_task_drop")
NUMBERS = st.floats(1e-6, 0.99)
LIMITS = st.fixed_dictionaries({}, optional={key: st.none() | VALUES.get(key, NUMBERS) for key in keys()})
PER_ENGINE = {key: VALUES.get(key, NUMBERS) for key, check in keys().items() if checks.load(check).PER_ENGINE}
NAMES = st.text("abc-:", min_size=1, max_size=5)


@settings(deadline=None)  # a loaded machine is no failure
@given(
    LIMITS, st.dictionaries(NAMES, st.fixed_dictionaries({}, optional=PER_ENGINE), max_size=3), st.floats(0.5, 0.999)
)
def test_policies_round_trip(limits: dict[str, Any], engines: dict[str, Any], confidence: float) -> None:
    policy = Policy(limits, engines, None, confidence)
    assert codec.from_json(Policy, codec.to_json(policy)) == policy
    settings = {"version": 1, "limits": limits, "engines": engines, "confidence": confidence}
    assert make_policy(settings, "p") == policy


def test_no_two_checks_share_a_key() -> None:
    owned = [key for name in checks.names() for key in codec.json_schema(checks.load(name).Limits)["properties"]]
    assert sorted(owned) == sorted(keys())


def test_the_published_schema_is_the_one_that_is_read() -> None:
    """`tailcut gate --schema > docs/policy.schema.json` after a change of the checks."""
    assert json.loads((DOCS / "policy.schema.json").read_text()) == schema()
    shared = schema()["properties"]["limits"]["properties"]
    assert set(shared) == set(keys())
    assert shared["min_speedup"]["anyOf"][0] == {"exclusiveMinimum": 0, "type": "number"}


def test_every_key_is_in_the_reference() -> None:
    text = (DOCS / "gate.md").read_text()
    assert [key for key in keys() if f"`{key}`" not in text] == []


@pytest.mark.parametrize("path", sorted((DOCS / "policies").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_policies(path: Path) -> None:
    assert read_policy(path).stated


def test_the_speedup_that_the_judged_engines_share() -> None:
    def asked(**policy: object) -> float | None:
        return make_policy({"version": 1, **policy}, "test").min_speedup("tailcut")

    limits = {"min_speedup": 1.5}
    assert asked(limits=limits) == asked(limits=limits, engine="onnxruntime") == 1.5
    assert asked(limits={"max_tpot_ms": 3}) is None
    assert asked(limits=limits, engines={"tailcut": {}, "onnxruntime": {"min_speedup": None}}) == 1.5
    assert asked(limits=limits, engines={"tailcut": {}, "onnxruntime": {"min_speedup": 1.1}}) is None
