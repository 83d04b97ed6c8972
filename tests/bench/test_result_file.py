"""Hostile result files: each is refused with one sentence before anything is judged."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailcut import codec
from tailcut.accuracy import ZeroShot
from tailcut.bench.checks import Subject
from tailcut.bench.gate import judge, seeded_result
from tailcut.bench.policy import Policy, keys
from tailcut.bench.result_file import read_result
from tailcut.errors import InputError
from tailcut.results import BenchResult, Check, Verdict

Body = dict[str, Any]


@pytest.fixture(scope="module")
def honest() -> str:
    from tailcut.bench.checks._seeded import seeded_result as made

    return codec.to_json(made(speedup=2.0, ppl_ratio=1.02, kl=0.01))


def engine(body: Body) -> Body:
    found: Body = body["engines"][0]
    return found


CHANGES: list[tuple[Callable[[Body], Any], str]] = [
    (lambda b: b.update(extra=1), "field extra"),
    (lambda b: b.update(schema="tailcut/Verdict"), "expected schema 'tailcut/BenchResult'"),
    (lambda b: b.update(schema_version=99), "schema version 99"),
    (lambda b: b.update(engines={}), "field engines"),
    (lambda b: b.update(engines=None), "field engines"),
    (lambda b: b["workload"].update(batch="1"), "workload.batch"),
    (lambda b: b["workload"].update(batch=True), "workload.batch"),
    (lambda b: b["workload"].update(batch=-1), "batch must be at least 1"),
    (lambda b: b["machine"].update(fingerprint=7), "machine.fingerprint"),
    (lambda b: engine(b).update(engine="t\u0430ilcut"), r"'t\\u0430ilcut' is not plain lower-case ASCII"),
    (lambda b: engine(b).update(engine="tail\u200bcut"), r"U\+200B"),
    (lambda b: engine(b).update(engine="tailcut\u202e"), r"U\+202E"),
    (lambda b: engine(b).update(engine="\x1b[2Jtailcut"), r"U\+001B"),
    (lambda b: engine(b).update(engine=""), "is not plain"),
    (lambda b: b["engines"].append(engine(b)), "is in it twice"),
    (lambda b: engine(b).update(status="probably"), "engines.0.status"),
    (lambda b: engine(b)["decode_speedup"].update(value=9.0), "is stated as 9, its samples say"),
    (lambda b: engine(b)["decode_speedup"].update(low=3.0, high=2.0), "is no interval"),
    (lambda b: engine(b)["decode_speedup"].update(low=-1.0), "is no interval"),
    (lambda b: engine(b)["decode_speedup"].update(confidence=0.01), "is no interval"),
    (lambda b: engine(b)["sparse"].update(decode_ms=[]), "without samples"),
    (lambda b: engine(b).update(dense=None), "without samples"),
    (lambda b: engine(b)["sparse"]["decode_ms"][0].__setitem__(0, 0.0), "is not positive"),
    (lambda b: engine(b)["sparse"]["decode_ms"][0].__setitem__(0, "1"), "decode_ms.0.0"),
    (lambda b: engine(b)["sparse"]["decode_ms"].__setitem__(0, 1.0), "decode_ms.0"),
    (lambda b: engine(b)["dense"].update(peak_rss_bytes=-1), "negative number of bytes"),
    (lambda b: engine(b)["dense"].update(peak_rss_bytes=10**30), "an integer of 31 digits"),
    (lambda b: b["sparse"].update(sparsity=7.0), "sparsity 7.0"),
    (lambda b: b["sparse"].update(bytes_on_disk=-5), "-5 bytes"),
    (lambda b: b["quality"][0].update(sparse_nll=[1.0]), "not scored on the same windows"),
    (lambda b: b["quality"][0].update(dense_nll=[], sparse_nll=[]), "not scored on the same windows"),
    (lambda b: b["quality"][0].update(tokens_scored=0), "do not belong to 40 windows"),
    (lambda b: b["quality"][0]["ratio"].update(value=1.0), "its samples say"),
    (lambda b: b["quality"][0].update(kl_nats=[-1.0] * 40), "a KL is negative"),
    (lambda b: b["quality"][0].update(text="a\nb\x00"), r"U\+0000"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words for _, words in CHANGES])
def test_a_changed_result_is_refused(change: Callable[[Body], Any], words: str, honest: str, tmp_path: Path) -> None:
    body = json.loads(honest)
    change(body)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match=words) as caught:
        read_result(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def hostile_texts(honest: str) -> dict[str, str | bytes]:
    head = honest[: honest.index('"made_by"')]
    return {
        "deep": head + '"made_by": ' + "[" * 10_000 + "]" * 10_000 + "}",
        "NaN": honest.replace('"load_seconds": 0.0', '"load_seconds": NaN', 1),
        "infinite": honest.replace('"load_seconds": 0.0', '"load_seconds": 1e400', 1),
        "duplicated": honest.replace('"engine": "seeded"', '"engine": "seeded", "engine": "tailcut"', 1),
        "half": honest[: len(honest) // 2],
        "empty": "",
        "binary": bytes(range(256)),
        "utf-16": honest.encode("utf-16"),
        "list": f"[{honest}]",
        "two": honest + honest,
    }


@pytest.mark.parametrize(
    "name", ["deep", "NaN", "infinite", "duplicated", "half", "empty", "binary", "utf-16", "list", "two"]
)
def test_a_hostile_file_is_exit_2_and_one_sentence(name: str, honest: str, tmp_path: Path, tailcut: Any) -> None:
    text = hostile_texts(honest)[name]
    assert text != honest
    path = tmp_path / "r.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = tailcut("gate", path, "--min-speedup", "1.5", "--json")
    assert code == 2
    assert not out
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 3  # one sentence, wrapped


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, tailcut: Any) -> None:
    path = tmp_path / "r.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    code, _, err = tailcut("gate", path, "--min-speedup", "1.5")
    assert code == 2
    assert "larger than 268 MB" in " ".join(err.split())


def test_too_many_samples_are_refused(tmp_path: Path, tailcut: Any) -> None:
    result = seeded_result(speedup=2.0)
    side = result.engines[0].sparse
    assert side is not None
    many = replace(side, decode_ms=(side.decode_ms[0] * 10_000,) * 8)
    path = tmp_path / "r.json"
    codec.save(replace(result, engines=(replace(result.engines[0], sparse=many, decode_speedup=None),)), path)
    code, _, err = tailcut("gate", path, "--limit", "max_tpot_ms=5")
    assert code == 2
    assert "no bench takes more" in " ".join(err.split())


EVERYTHING = Policy(
    {key: {"pattern": "2:4"}.get(key, True if key.startswith(("verify", "require")) else 0.9) for key in keys()}
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=20)
MAYBE = st.none() | FINITE
OUTCOMES = st.sampled_from(["pass", "fail", "inconclusive"])
CHECKS = st.builds(Check, TEXT, OUTCOMES, MAYBE, MAYBE, MAYBE, MAYBE, TEXT, TEXT)
LIMITS = st.dictionaries(TEXT, st.none() | FINITE | st.booleans() | TEXT, max_size=4)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.builds(Verdict, OUTCOMES, TEXT, st.lists(CHECKS, max_size=4).map(tuple), TEXT, LIMITS))
def test_verdicts_round_trip(verdict: Verdict) -> None:
    assert codec.from_json(Verdict, codec.to_json(verdict)) == verdict


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_results_round_trip_and_any_changed_value_is_judged_or_refused(
    data: st.DataObject, honest: str, tmp_path: Path
) -> None:
    """A fuzzer that replaces one value anywhere: never another exception than the sentence."""
    result = codec.from_json(BenchResult, honest)
    assert codec.from_json(BenchResult, codec.to_json(result)) == result
    body = json.loads(honest)
    at: Any = body
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        break
    at[key] = data.draw(
        st.none() | st.booleans() | st.integers() | FINITE | st.text(max_size=5) | st.just([]) | st.just({})
    )
    path = tmp_path / "r.json"
    path.write_text(json.dumps(body))
    with suppress(InputError):
        judge(Subject(read_result(path), baseline=result), EVERYTHING)


def test_zero_shot_answers_round_trip() -> None:
    from tailcut.bench.checks._seeded import seeded_answers

    answers = seeded_answers(0.05)
    assert codec.from_json(ZeroShot, codec.to_json(answers)) == answers
