"""The gate's truth table: what passes, what fails, what it refuses to decide."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tailcut import cli, codec
from tailcut.bench.gate import Limits, judge, seeded_result, self_test
from tailcut.errors import InputError
from tailcut.results import BenchResult, Engagement, EngineResult, Quality, Ratio, Verdict


def with_speedup(low: float, value: float, high: float) -> BenchResult:
    result = seeded_result(speedup=2.0)
    ratio = Ratio(value, low, high, 0.95)
    return replace(result, engines=(replace(result.engines[0], decode_speedup=ratio, prefill_speedup=ratio),))


def quality(low: float, value: float, high: float) -> Quality:
    return Quality("text", "", "", 8, None, 7, 10.0, 10.0 * value, Ratio(value, low, high, 0.95), (1.0,), (1.0,))


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        ((1.6, 1.8, 2.0), "pass"),
        ((1.5, 1.8, 2.0), "pass"),
        ((1.4, 1.8, 2.0), "inconclusive"),
        ((1.4, 1.5, 1.6), "inconclusive"),
        ((1.1, 1.3, 1.5), "inconclusive"),
        ((1.1, 1.2, 1.4), "fail"),
    ],
)
def test_a_speedup_passes_only_if_its_interval_does(interval: tuple[float, float, float], outcome: str) -> None:
    assert judge(with_speedup(*interval), Limits(min_speedup=1.5)).outcome == outcome


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [((1.0, 1.1, 1.2), "pass"), ((1.2, 1.25, 1.4), "inconclusive"), ((1.31, 1.4, 1.5), "fail")],
)
def test_a_perplexity_ratio_passes_only_if_its_interval_does(
    interval: tuple[float, float, float], outcome: str
) -> None:
    result = replace(seeded_result(speedup=2.0), quality=(quality(*interval),))
    assert judge(result, Limits(max_ppl_ratio=1.3)).outcome == outcome


def test_every_text_is_judged() -> None:
    result = replace(seeded_result(speedup=2.0), quality=(quality(1.0, 1.1, 1.2), quality(1.5, 1.6, 1.7)))
    assert judge(result, Limits(max_ppl_ratio=1.3)).outcome == "fail"


def test_ttft_is_judged_as_sparse_over_dense() -> None:
    result = with_speedup(0.45, 0.5, 0.55)  # sparse prefill takes twice as long
    assert judge(result, Limits(max_ttft_ratio=1.5)).outcome == "fail"
    assert judge(result, Limits(max_ttft_ratio=2.5)).outcome == "pass"


def test_an_absent_engine_is_inconclusive_never_a_pass() -> None:
    result = replace(seeded_result(speedup=2.0), engines=(EngineResult("deepsparse", "not measured", "not installed"),))
    verdict = judge(result, Limits(min_speedup=1.5))
    assert (verdict.outcome, verdict.exit_code) == ("inconclusive", 3)
    assert "not installed" in verdict.checks[0].sentence
    assert judge(seeded_result(speedup=2.0), Limits(min_speedup=1.5, engine="nope")).outcome == "inconclusive"


@pytest.mark.parametrize("limits", [Limits(max_ppl_ratio=1.3), Limits(max_ttft_ratio=1.3)])
def test_a_limit_on_what_was_not_measured_fails(limits: Limits) -> None:
    result = seeded_result(speedup=2.0)
    result = replace(result, engines=(replace(result.engines[0], prefill_speedup=None),))
    verdict = judge(result, limits)
    assert verdict.outcome == "fail"
    assert "does not hold it" in verdict.checks[0].sentence


@pytest.mark.parametrize("engagement", [None, Engagement(False, "folds the zeros to dense")])
def test_a_speedup_without_a_sparse_kernel_fails(engagement: Engagement | None) -> None:
    result = seeded_result(speedup=2.0)
    result = replace(result, engines=(replace(result.engines[0], engagement=engagement),))
    assert judge(result, Limits(min_speedup=1.5)).outcome == "fail"
    assert judge(result, Limits(min_speedup=1.5, require_engagement=False)).outcome == "pass"


def test_exact_values_have_no_third_verdict() -> None:
    result = seeded_result(speedup=2.0)
    result = replace(
        result,
        sparse=replace(result.sparse, sparsity=0.7, bytes_on_disk=40),
        dense=replace(result.dense, bytes_on_disk=100),
    )
    assert judge(result, Limits(min_sparsity=0.7, max_size_ratio=0.4)).outcome == "pass"
    assert judge(result, Limits(min_sparsity=0.72)).outcome == "fail"
    assert judge(result, Limits(max_size_ratio=0.39)).outcome == "fail"
    assert judge(result, Limits(max_rss_ratio=1.0)).outcome == "pass"
    assert judge(result, Limits(max_rss_ratio=0.9)).outcome == "fail"


def test_a_failure_outweighs_an_inconclusive_check() -> None:
    result = replace(with_speedup(1.4, 1.8, 2.0), quality=(quality(1.5, 1.6, 1.7),))
    assert judge(result, Limits(min_speedup=1.5, max_ppl_ratio=1.3)).outcome == "fail"


def test_no_limits_say_that_nothing_was_judged() -> None:
    verdict = judge(seeded_result(speedup=2.0), Limits())
    assert verdict.checks == ()
    assert "nothing was judged" in verdict.note


@pytest.mark.parametrize("bad", [{"min_speedup": 0.0}, {"max_ppl_ratio": float("nan")}, {"min_sparsity": 70.0}])
def test_a_limit_that_means_nothing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Limits(**bad)  # type: ignore[arg-type]


def test_the_gate_tests_itself() -> None:
    answers = self_test()
    assert len(answers) == 5
    assert all(right for _, right in answers)


@pytest.fixture(scope="module")
def run() -> CliRunner:
    if not cli.app.registered_commands:
        cli._register()
    return CliRunner()


def test_the_command_exits_0_1_3_and_writes_the_verdict(tmp_path: Path, run: CliRunner) -> None:
    codes = {}
    for name, speedup in (("fast", 2.0), ("edge", 1.5), ("slow", 1.1)):
        path = tmp_path / f"{name}.json"
        codec.save(seeded_result(speedup=speedup), path)
        verdict = tmp_path / f"{name}.verdict.json"
        done = run.invoke(cli.app, ["gate", str(path), "--min-speedup", "1.5", "-o", str(verdict), "--json"])
        codes[name] = done.exit_code
        assert json.loads(done.stdout)["outcome"] == codec.load(Verdict, verdict).outcome
    assert codes == {"fast": 0, "edge": 3, "slow": 1}


def test_the_command_refuses_to_judge_nothing(tmp_path: Path, run: CliRunner) -> None:
    path = tmp_path / "r.json"
    codec.save(seeded_result(speedup=2.0), path)
    done = run.invoke(cli.app, ["gate", str(path)])
    assert isinstance(done.exception, InputError)
    assert "at least one limit" in str(done.exception)
    assert run.invoke(cli.app, ["gate", "--self-test"]).exit_code == 0
