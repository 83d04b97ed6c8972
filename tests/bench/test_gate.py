"""The gate's truth table: what passes, what fails, what it refuses to decide."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailcut import codec
from tailcut.bench import checks
from tailcut.bench.checks import Subject
from tailcut.bench.gate import judge, self_test
from tailcut.bench.policy import Policy
from tailcut.bench.stats import mean_exp_ratio
from tailcut.errors import InputError
from tailcut.results import (
    BenchResult,
    Check,
    Engagement,
    EngineResult,
    PackageFacts,
    Procedure,
    Ratio,
    Sentinel,
    Verdict,
)

SEEDED: Any = importlib.import_module("tailcut.bench.checks._seeded")
seeded_result = SEEDED.seeded_result


def with_speedup(low: float, value: float, high: float, confidence: float = 0.95) -> BenchResult:
    result: BenchResult = seeded_result(speedup=2.0)
    ratio = Ratio(value, low, high, confidence)
    return replace(result, engines=(replace(result.engines[0], decode_speedup=ratio, prefill_speedup=ratio),))


def with_quality(*intervals: tuple[float, float, float]) -> BenchResult:
    result: BenchResult = seeded_result(speedup=2.0, ppl_ratio=1.0)
    made = [replace(result.quality[0], ratio=Ratio(value, low, high, 0.95)) for low, value, high in intervals]
    return replace(result, quality=tuple(made))


def outcome(result: BenchResult | Subject, **limits: Any) -> str:
    return judge(result, Policy(limits)).outcome


@pytest.mark.parametrize(
    ("interval", "answer"),
    [
        ((1.6, 1.8, 2.0), "pass"),
        ((1.5, 1.8, 2.0), "pass"),
        ((1.4, 1.8, 2.0), "inconclusive"),
        ((1.4, 1.5, 1.6), "inconclusive"),
        ((1.1, 1.3, 1.5), "inconclusive"),
        ((1.1, 1.2, 1.4), "fail"),
    ],
)
def test_a_speedup_passes_only_if_its_interval_does(interval: tuple[float, float, float], answer: str) -> None:
    assert outcome(with_speedup(*interval), min_speedup=1.5) == answer


@pytest.mark.parametrize(
    ("interval", "answer"),
    [((1.0, 1.1, 1.2), "pass"), ((1.2, 1.25, 1.4), "inconclusive"), ((1.31, 1.4, 1.5), "fail")],
)
def test_a_perplexity_ratio_passes_only_if_its_interval_does(interval: tuple[float, float, float], answer: str) -> None:
    assert outcome(with_quality(interval), max_ppl_ratio=1.3) == answer


def test_every_text_is_judged() -> None:
    assert outcome(with_quality((1.0, 1.1, 1.2), (1.5, 1.6, 1.7)), max_ppl_ratio=1.3) == "fail"


def test_ttft_is_judged_as_sparse_over_dense() -> None:
    result = with_speedup(0.45, 0.5, 0.55)  # sparse prefill takes twice as long
    assert outcome(result, max_ttft_ratio=1.5) == "fail"
    assert outcome(result, max_ttft_ratio=2.5) == "pass"


def test_an_absent_engine_is_inconclusive_never_a_pass() -> None:
    result = replace(seeded_result(speedup=2.0), engines=(EngineResult("deepsparse", "not measured", "not installed"),))
    verdict = judge(result, Policy({"min_speedup": 1.5}))
    assert (verdict.outcome, verdict.exit_code) == ("inconclusive", 3)
    assert "not installed" in verdict.checks[0].sentence
    assert judge(seeded_result(speedup=2.0), Policy({"min_speedup": 1.5}, engine="nope")).outcome == "inconclusive"


@pytest.mark.parametrize("limits", [{"max_ppl_ratio": 1.3}, {"max_ttft_ratio": 1.3}, {"max_kl": 0.1}])
def test_a_limit_on_what_was_not_measured_fails(limits: dict[str, float]) -> None:
    result = seeded_result(speedup=2.0)
    result = replace(result, engines=(replace(result.engines[0], prefill_speedup=None),))
    verdict = judge(result, Policy(limits))
    assert verdict.outcome == "fail"
    assert "has the limit" in verdict.checks[0].sentence


@pytest.mark.parametrize("engagement", [None, Engagement(proven=False, reason="folds the zeros to dense")])
def test_a_speedup_without_a_sparse_kernel_fails(engagement: Engagement | None) -> None:
    result = seeded_result(speedup=2.0)
    result = replace(result, engines=(replace(result.engines[0], engagement=engagement),))
    assert outcome(result, min_speedup=1.5) == "fail"
    assert outcome(result, min_speedup=1.5, require_engagement=False) == "pass"


def test_exact_values_have_no_third_verdict() -> None:
    result = seeded_result(speedup=2.0)
    result = replace(
        result,
        sparse=replace(result.sparse, sparsity=0.7, bytes_on_disk=40),
        dense=replace(result.dense, bytes_on_disk=100),
    )
    assert outcome(result, min_sparsity=0.7, max_size_ratio=0.4) == "pass"
    assert outcome(result, min_sparsity=0.72) == "fail"
    assert outcome(result, max_size_ratio=0.39) == "fail"
    assert outcome(result, max_rss_ratio=1.0) == "pass"
    assert outcome(result, max_rss_ratio=0.9) == "fail"


def test_a_failure_outweighs_an_inconclusive_check() -> None:
    edge = with_speedup(1.4, 1.8, 2.0)
    worse = replace(edge, quality=with_quality((1.5, 1.6, 1.7)).quality)
    assert outcome(edge, min_speedup=1.5) == "inconclusive"
    assert outcome(worse, min_speedup=1.5, max_ppl_ratio=1.3) == "fail"


def test_no_limits_say_that_nothing_was_judged() -> None:
    verdict = judge(seeded_result(speedup=2.0), Policy())
    assert verdict.checks == ()
    assert "nothing was judged" in verdict.note


def test_each_engine_is_held_to_its_own_limits() -> None:
    result = seeded_result(speedup=2.0)
    other = replace(
        result.engines[0], engine="other", decode_speedup=with_speedup(1.1, 1.2, 1.3).engines[0].decode_speedup
    )
    result = replace(result, engines=(*result.engines, other))
    same = judge(result, Policy({"min_speedup": 1.5}, {"seeded": {}, "other": {}}))
    assert same.outcome == "fail"
    assert {(check.engine, check.outcome) for check in same.checks if check.name == "decode speedup"} == {
        ("seeded", "pass"),
        ("other", "fail"),
    }
    assert judge(result, Policy({"min_speedup": 1.5}, {"seeded": {}, "other": {"min_speedup": 1.05}})).outcome == "pass"
    left_out = judge(result, Policy({"min_speedup": 1.5}, {"seeded": {}, "other": {"min_speedup": None}}))
    assert left_out.outcome == "pass"
    assert not [check for check in left_out.checks if check.engine == "other"]


def test_an_interval_of_too_little_confidence_decides_nothing() -> None:
    sure = with_speedup(1.6, 1.8, 2.0, confidence=0.8)
    verdict = judge(sure, Policy({"min_speedup": 1.5}))
    assert verdict.outcome == "inconclusive"
    assert "asks for 95% intervals" in verdict.checks[0].sentence
    assert judge(sure, Policy({"min_speedup": 1.5}, confidence=0.8)).outcome == "pass"


def loud(result: BenchResult) -> BenchResult:
    sentinel = Sentinel(1.0, 1.0, (1.0,), (1.0,), ((1.0,),), ((1.0,),))
    made = [
        Procedure(phase, (0,), 0, 2, 8, (), True, "all blocks", 1.0, 0.95, sentinel) for phase in ("decode", "prefill")
    ]
    return replace(result, engines=(replace(result.engines[0], procedures=tuple(made)),))


@pytest.mark.parametrize("speedup", [1.0, 3.0])
@pytest.mark.parametrize(
    "limits", [{"min_speedup": 1.5}, {"max_tpot_ms": 6.0}, {"min_tokens_per_second": 150.0}, {"max_ttft_ms": 50.0}]
)
def test_times_of_a_disturbed_machine_decide_nothing(speedup: float, limits: dict[str, float]) -> None:
    calm: BenchResult = seeded_result(speedup=speedup)
    assert outcome(calm, **limits) == ("pass" if speedup > 2 else "fail")
    verdict = judge(loud(calm), Policy(limits))
    assert verdict.outcome == "inconclusive"
    assert "disturbed" in verdict.checks[0].sentence


def test_load_widens_the_interval_until_nothing_is_decided() -> None:
    """The same true values (2.0x, 5 ms), 5 % and 60 % of noise between blocks."""
    limits = {"min_speedup": 1.6, "max_tpot_ms": 6.5, "min_tokens_per_second": 150.0}
    assert outcome(seeded_result(speedup=2.0), **limits) == "pass"
    noisy = judge(seeded_result(speedup=2.0, noise=0.6), Policy(limits))
    assert {check.outcome for check in noisy.checks if check.limit is not None} == {"inconclusive"}


def test_a_stopped_early_bench_has_wider_medians() -> None:
    """Who looks at an interval until it is narrow must pay for the looks."""
    result = loud(seeded_result(speedup=2.0))
    procedures = tuple(replace(one, loud=False, look_confidence=0.999) for one in result.engines[0].procedures)
    looked = replace(result, engines=(replace(result.engines[0], procedures=procedures),))
    limit = Policy({"max_tpot_ms": 5.6})
    once, often = (judge(one, limit).checks[0] for one in (seeded_result(speedup=2.0), looked))
    assert often.low is not None
    assert once.low is not None
    assert often.low < once.low
    assert often.value == once.value


@pytest.mark.parametrize("name", checks.names())
def test_every_check_keeps_the_contract(name: str, tmp_path: Path) -> None:
    """One folder, one registry: fields that are policy keys, described, unset by default; nothing stated, nothing judged."""
    module = checks.load(name)
    assert isinstance(module.PER_ENGINE, bool)
    nothing = module.Limits()
    described = codec.json_schema(module.Limits)["properties"]
    assert described
    for key, shown in described.items():
        assert getattr(nothing, key) is None
        assert shown["description"].endswith(".")
    assert module.check(Subject(seeded_result(speedup=2.0), "seeded"), nothing) == ()
    outcomes = [case.outcome for case in module.cases(tmp_path)]
    assert "fail" in outcomes
    assert "pass" in outcomes


def test_the_gate_tests_itself() -> None:
    answers = self_test()
    assert all(right for _, right in answers), [what for what, right in answers if not right]
    assert {what.partition(":")[0] for what, _ in answers} == set(checks.names())


@pytest.mark.parametrize("name", checks.names())
@pytest.mark.parametrize("answer", ["pass", "fail", "inconclusive"])
def test_a_check_that_always_says_the_same_is_found(name: str, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(subject: Subject, limits: object) -> tuple[Check, ...]:
        return (Check("stuck", answer, None, None, None, None, "stuck"),)

    monkeypatch.setattr(checks, "names", lambda: (name,))
    monkeypatch.setattr(checks.load(name), "check", stuck)
    assert not all(right for _, right in self_test())


def test_a_baseline_is_compared_on_the_same_machine_and_workload_only() -> None:
    new, old = seeded_result(speedup=2.0), seeded_result(speedup=1.0)
    elsewhere = replace(old, machine=replace(old.machine, fingerprint="f00"))
    nameless = replace(old, machine=replace(old.machine, fingerprint=""))
    longer = replace(old, workload=replace(old.workload, context=512))
    limit = Policy({"min_speedup_of_baseline": 0.9, "max_tpot_of_baseline": 1.1})
    assert judge(Subject(new, baseline=old), limit).outcome == "pass"
    for baseline, words in ((elsewhere, "another machine"), (nameless, "another machine"), (longer, "context 512")):
        verdict = judge(Subject(new, baseline=baseline), limit)
        assert {check.outcome for check in verdict.checks} == {"inconclusive"}
        assert all(words in check.sentence and check.value is None for check in verdict.checks)
    disturbed = judge(Subject(new, baseline=loud(old)), limit)
    assert {check.outcome for check in disturbed.checks} == {"inconclusive"}
    assert "of the baseline" in disturbed.checks[0].sentence
    both_nameless = replace(new, machine=nameless.machine)
    assert judge(Subject(both_nameless, baseline=nameless), limit).outcome == "inconclusive"


def test_the_perplexity_of_a_baseline_is_paired_by_windows() -> None:
    """The models differ by 1 % while windows differ by 30 %: only pairing can tell."""
    old = seeded_result(speedup=2.0, ppl_ratio=1.02)
    quality = old.quality[0]
    nats = tuple(value + 511 * 0.01 for value in quality.sparse_nll)
    dense = SEEDED.np.asarray(quality.dense_nll)
    worse = replace(quality, sparse_nll=nats, ratio=mean_exp_ratio(dense, SEEDED.np.asarray(nats), 511))
    subject = Subject(replace(old, quality=(worse,)), baseline=old)
    check = judge(subject, Policy({"max_ppl_of_baseline": 1.005})).checks[0]
    assert check.outcome == "fail"
    assert check.value == pytest.approx(1.01005, rel=1e-4)  # exp(0.01)


def test_a_limit_that_finds_nothing_to_judge_fails() -> None:
    """Answers to no task at all: there is no task to have lost anything on."""
    answers = SEEDED.seeded_answers(0.0)
    none = replace(answers, models=tuple(replace(model, right={}) for model in answers.models))
    assert judge(Subject(seeded_result(speedup=2.0), tasks=none), Policy({"max_task_drop": 0.02})).outcome == "fail"


def test_a_package_without_facts_is_not_small() -> None:
    result = replace(seeded_result(speedup=2.0), sparse=PackageFacts("", 0, 0.0, 0.0, 0))
    assert outcome(result, max_size_mb=1.0, max_size_ratio=0.1) == "fail"


def test_the_command_exits_0_1_3_and_writes_the_verdict(tmp_path: Path, tailcut: Any) -> None:
    codes = {}
    for name, speedup in (("fast", 2.0), ("edge", 1.5), ("slow", 1.1)):
        path, verdict = tmp_path / f"{name}.json", tmp_path / f"{name}.verdict.json"
        codec.save(seeded_result(speedup=speedup), path)
        codes[name], out, _ = tailcut("gate", path, "--min-speedup", "1.5", "-o", verdict, "--json")
        assert json.loads(out)["outcome"] == codec.load(Verdict, verdict).outcome
    assert codes == {"fast": 0, "edge": 3, "slow": 1}


def test_the_command_judges_by_a_policy_with_flags_on_top(tmp_path: Path, tailcut: Any) -> None:
    result, policy = tmp_path / "r.json", tmp_path / "p.yaml"
    codec.save(seeded_result(speedup=2.0, ppl_ratio=1.02, kl=0.01), result)
    policy.write_text("version: 1\nlimits: {min_speedup: 1.5, max_kl: 0.05, max_tpot_ms: 6}\n")
    code, out, _ = tailcut("gate", result, "--policy", policy)
    assert code == 0, out
    assert "KL to dense on seeded 0.0" in out
    assert tailcut("gate", result, "--policy", policy, "--limit", "max_tpot_ms=4")[0] == 1
    assert tailcut("gate", result, "--policy", policy, "--min-speedup", "3")[0] == 1
    assert tailcut("gate", result, "--policy", policy, "--engine", "other")[0] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "at least one limit"),
        (("--limit", "min_speedup"), "not KEY=VALUE"),
        (("--limit", "min_speedupp=2"), "did you mean min_speedup"),
        (("--limit", "min_speedup=fast"), "min_speedup"),
        (("--min-speedup", "nan"), "min_speedup"),
        (("--min-sparsity", "70"), "min_sparsity"),
        (("--policy", "nowhere.yaml"), "cannot read the policy"),
    ],
)
def test_the_command_refuses_in_a_sentence(
    arguments: tuple[str, ...], words: str, tmp_path: Path, tailcut: Any
) -> None:
    path = tmp_path / "r.json"
    codec.save(seeded_result(speedup=2.0), path)
    code, out, err = tailcut("gate", path, *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not out


def test_the_command_tests_itself(tailcut: Any) -> None:
    code, out, _ = tailcut("gate", "--self-test")
    assert code == 0
    assert "WRONG" not in out


def test_a_result_is_needed() -> None:
    with pytest.raises(InputError, match="holds no measurement"):
        _ = Subject(seeded_result(speedup=2.0), "other").measured
