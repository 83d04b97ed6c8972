"""Limits under load: where they count, what their intervals promise, what is refused, what a release shows of it."""

import importlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut import codec
from tailcut.bench import outputs
from tailcut.bench.checks import Subject, under_load
from tailcut.bench.checks._intervals import of_blocks
from tailcut.bench.gate import judge, seeded_result
from tailcut.bench.load_file import read_load
from tailcut.bench.load_tables import load_tables
from tailcut.bench.load_values import LoadResult
from tailcut.bench.page import html_page
from tailcut.bench.policy import Policy, make_policy
from tailcut.bench.report import markdown_report
from tailcut.errors import InputError
from tailcut.results import Verdict

SEEDED: Any = importlib.import_module("tailcut.bench.checks._seeded_load")
EVIL = '"><script>alert(1)</script>{{ 7 * 7 }} | `a` *b*'
Body = dict[str, Any]
Tailcut = Callable[..., tuple[int, str, str]]


def judged(load: LoadResult | None, **limits: float | str) -> Verdict:
    return judge(Subject(seeded_result(speedup=2.0), load=load), Policy(limits))


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("60", "neither a number nor a list"),
        ("60 at 4, 90 at 8", "neither a number nor a list"),
        ("60 at", "neither a number nor a list"),
        ("60 at 0", "neither a number nor a list"),
        ("-60 at 4", "neither a number nor a list"),
        ("inf at 4", "neither a number nor a list"),
        ("1e999 at 4", "neither a number nor a list"),
        ("60 at 4\n", "neither a number nor a list"),
        ("٦0 at 4", "neither a number nor a list"),
        ("0.0 at 4", "a limit of 0"),
        ("60 at 4 and 90 at 4", "two limits for one place"),
        ("6 at 4 and " * 5000, "neither a number nor a list"),
        (-1, "greater than 0"),
        (True, "valid number"),
        ({"4": 60}, "valid number"),
    ],
)
def test_a_limit_that_is_refused(limit: object, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make_policy({"version": 1, "limits": {"min_load_tokens_per_second": limit}}, "gate.yaml")
    assert str(caught.value).startswith("gate.yaml: ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_a_limit_says_where_it_counts() -> None:
    assert under_load.parsed("key", "60 at 4 and 90.5 at 16") == {4: 60.0, 16: 90.5}
    load = SEEDED.seeded_load(speedup=2.0)
    point = load.engines[0].streams[0]
    both = replace(load.engines[0], streams=(point, replace(point, streams=16)))
    verdict = judged(replace(load, engines=(both,)), min_load_tokens_per_second="150 at 4 and 250 at 16")
    assert [(check.name, check.limit, check.outcome) for check in verdict.checks] == [
        ("tokens per second at 4 streams", 150.0, "pass"),
        ("tokens per second at 16 streams", 250.0, "fail"),
    ]
    number = judged(replace(load, engines=(both,)), min_load_tokens_per_second=150.0)
    assert [check.name for check in number.checks] == [
        check.name for check in verdict.checks
    ]  # wherever it was measured


def test_an_unmeasured_point_is_never_left_out_of_a_plain_number() -> None:
    verdict = judged(SEEDED.seeded_load(speedup=9.0), min_load_speedup=1.5)
    assert [check.outcome for check in verdict.checks] == ["pass", "inconclusive"]
    assert "8 streams: not measured: it needs more memory" in verdict.checks[1].sentence


def test_disturbed_blocks_do_not_count_and_too_few_blocks_decide_nothing() -> None:
    load = SEEDED.seeded_load(speedup=2.0)
    engine = load.engines[0]
    point = engine.streams[0]

    def kept(*undisturbed: int) -> LoadResult:
        reasons = tuple("" if place in undisturbed else "disturbed" for place in range(len(point.disturbed)))
        return replace(load, engines=(replace(engine, streams=(replace(point, disturbed=reasons),)),))

    def value(found: LoadResult) -> float | None:
        return judged(found, min_load_tokens_per_second="1 at 4").checks[0].value

    first, second = (value(kept(place, 7)) for place in (0, 1))
    assert first != second
    for limit in ("min_load_tokens_per_second", "max_load_itl_p95_ratio", "max_load_ttft_p95_ms", "min_load_speedup"):
        one = judged(kept(3), **{limit: "1 at 4"})
        assert one.outcome == "inconclusive"
        assert "two undisturbed blocks" in one.checks[0].sentence


def test_the_gates_ratios_are_those_that_bench_load_states() -> None:
    load = SEEDED.seeded_load(speedup=2.0)
    point, context = load.engines[0].streams[0], load.engines[0].contexts[0]
    verdict = judged(load, min_load_speedup="1 at 4", min_context_speedup="1 at 2048")
    for check, stated in zip(verdict.checks, (point.throughput, context.speedup), strict=True):
        assert (check.value, check.low, check.high) == (stated.value, stated.low, stated.high)


@pytest.mark.parametrize("blocks", [3, 4, 8])
def test_the_interval_of_a_typical_block_holds(blocks: int) -> None:
    """p95 of 40 samples a block, blocks that differ by 10 %: 95 % of the intervals hold the p95 of a typical block."""
    rng = np.random.default_rng(blocks)

    def figures(trials: int) -> Any:
        mood = np.exp(rng.normal(0, 0.1, (trials, blocks, 1)))
        samples = mood * np.exp(rng.normal(0, 0.25, (trials, blocks, 40)))
        return np.percentile(samples, 95, axis=2, method="median_unbiased")

    truth = float(np.exp(np.log(figures(4000)).mean()))
    # nor is the figure itself biased by more than 1.5 % (numpy's default here: 2.8 %, too small)
    assert truth == pytest.approx(np.exp(0.25 * 1.645), rel=0.015)
    found = [of_blocks(row, 0.95) for row in figures(1500)]
    held = np.mean([one is not None and one.low <= truth <= one.high for one in found])
    assert 0.95 - 3 * 0.0056 <= held <= 0.95 + 3 * 0.0056  # standard error of 95 % over 1500 trials: 0.56 %


def visit(body: Body) -> Body:
    found: Body = body["engines"][0]["streams"][0]["sparse"]["visits"][0][0]
    return found


def point(body: Body, place: int = 0) -> Body:
    found: Body = body["engines"][0]["streams"][place]
    return found


def context(body: Body) -> Body:
    found: Body = body["engines"][0]["contexts"][0]
    return found


CHANGES: list[tuple[Callable[[Body], Any], str]] = [
    (lambda b: b.update(extra=1), "field extra"),
    (lambda b: b.update(schema="tailcut/BenchResult"), "expected schema 'tailcut/LoadResult'"),
    (lambda b: b["engines"].append(b["engines"][0]), "is in it twice"),
    (lambda b: b["engines"][0].update(engine="t\u0430ilcut"), "is not plain lower-case ASCII"),
    (lambda b: b["engines"][0].update(reason="\x1b[2J"), r"U\+001B"),
    (lambda b: b["engines"][0]["streams"].append(point(b)), "not different positive numbers"),
    (lambda b: point(b).update(streams=-4), "not different positive numbers"),
    (lambda b: point(b).update(dense=None), "neither a measurement of both sides nor a reason"),
    (lambda b: point(b, 1).update(reason=""), "neither a measurement of both sides nor a reason"),
    (lambda b: point(b).update(disturbed=[""]), "8 blocks, 1 are said"),
    (lambda b: point(b).update(disturbed=["x"] * 8), "8 blocks, 8 are said"),
    (lambda b: point(b)["sparse"].update(visits=[]), "0 blocks, 8 are said"),
    (lambda b: point(b)["sparse"]["visits"].__setitem__(0, [visit(b)]), "visits.0"),
    (lambda b: visit(b).update(seconds=0.0), "is not positive"),
    (lambda b: visit(b).update(tokens=-1), "is not positive"),
    (lambda b: visit(b)["ttft_ms"].__setitem__(0, -1.0), "is not positive"),
    (lambda b: visit(b).update(seconds=1e-3), "tokens a second is stated as"),
    (lambda b: point(b)["sparse"].update(tokens_per_second=999.0), "tokens a second is stated as 999"),
    (lambda b: point(b)["sparse"]["itl_ms"].update(p95=0.5), "p95 of next tokens is stated as 0.5"),
    (lambda b: point(b)["throughput"].update(value=9.0), "ratio of throughput is stated as 9"),
    (lambda b: point(b)["throughput"].update(low=9.0), "is no interval"),
    (lambda b: point(b).update(ttft={"p95": {"value": 1, "low": 2, "high": 1, "confidence": 0.9}}), "is no interval"),
    (lambda b: context(b)["sparse_ms"].pop(), "different numbers of samples"),
    (lambda b: [context(b)[side][0].pop() for side in ("dense_ms", "sparse_ms")], "different numbers of samples"),
    (lambda b: context(b).update(dense_ms=[], sparse_ms=[]), "neither samples nor a reason"),
    (lambda b: context(b)["dense_ms"][0].__setitem__(0, 0.0), "a time is not positive"),
    (lambda b: context(b)["speedup"].update(value=7.0), "the speedup is stated as 7"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES, ids=[words for _, words in CHANGES])
def test_a_changed_load_is_refused(change: Callable[[Body], Any], words: str, tmp_path: Path) -> None:
    body = json.loads(codec.to_json(SEEDED.seeded_load(speedup=2.0)))
    change(body)
    (tmp_path / "l.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match=words) as caught:
        read_load(tmp_path / "l.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_load_of_an_earlier_version_is_read_judged_and_shown(tmp_path: Path) -> None:
    """They state no p95; the gate takes it from the samples."""
    body = json.loads(codec.to_json(SEEDED.seeded_load(speedup=2.0)))
    for side in ("dense", "sparse"):
        for what in ("ttft_ms", "itl_ms"):
            del point(body)[side][what]["p95"]
    (tmp_path / "l.json").write_text(json.dumps(body))
    load = read_load(tmp_path / "l.json")
    assert judged(load, max_load_itl_p95_ms="30 at 4").outcome == "pass"
    assert all(len(row) == len(table.header) for table in load_tables(load) for row in table.rows)


def test_the_command_judges_it_and_every_output_says_so(tmp_path: Path, tailcut: Tailcut) -> None:
    paths = {name: tmp_path / name for name in ("result.json", "fast.json", "slow.json", "gate.yaml")}
    codec.save(seeded_result(speedup=2.0), paths["result.json"])
    for name, speedup in (("fast.json", 2.0), ("slow.json", 1.1)):
        codec.save(SEEDED.seeded_load(speedup=speedup), paths[name])
    paths["gate.yaml"].write_text(
        "version: 1\nlimits:\n  min_load_tokens_per_second: 150 at 4\n  min_context_speedup: 1.5\n"
    )
    formats = ("junit", "github", "markdown", "html", "gitlab-codequality")
    call = ("gate", paths["result.json"], "--policy", paths["gate.yaml"])
    wanted = [word for name in formats for word in ("-o", f"{name}={tmp_path / name}")]
    code, out, _ = tailcut(*call, "--load", paths["fast.json"])
    assert (code, "tokens per second at 4 streams" in out) == (0, True)
    code, _, _ = tailcut(*call, "--load", paths["slow.json"], *wanted)
    assert code == 1
    written = {name: (tmp_path / name).read_text() for name in formats}
    failures = ET.fromstring(written["junit"]).findall(".//testcase[failure]")  # noqa: S314  (made just now)
    names = ["tokens per second at 4 streams", "decode speedup at context 2048"]
    assert [one.get("name") for one in failures] == names
    assert all(name in written[form] for form in formats for name in names)
    assert "seeded: streams" in written["markdown"]
    assert len(re.findall(r'<img alt="seeded: [^"]*" src="data:image/svg', written["html"])) == 4
    code, out, _ = tailcut(*call)
    assert code == 1
    assert "no load was given: measure it with `tailcut bench-load`" in " ".join(out.split())
    code, _, err = tailcut(*call, "--load", paths["result.json"])
    assert code == 2
    assert "tailcut/LoadResult" in " ".join(err.split())


def test_the_report_of_a_directory_shows_its_load(tmp_path: Path, tailcut: Tailcut) -> None:
    codec.save(seeded_result(speedup=2.0), tmp_path / "result.json")
    assert tailcut("report", tmp_path)[0] == 0
    assert "Under load" not in (tmp_path / "report.html").read_text()
    codec.save(SEEDED.seeded_load(speedup=2.0), tmp_path / "load.json")
    assert tailcut("report", tmp_path)[0] == 0
    page, text = ((tmp_path / f"report.{end}").read_text() for end in ("html", "md"))
    assert page.index("Under load") < page.index('alt="seeded: throughput"') < page.index("first p95")
    assert "| 4 | sparse | " in text
    (tmp_path / "load.json").write_text("{}")
    assert tailcut("report", tmp_path)[0] == 2


def test_no_text_of_a_load_becomes_markup() -> None:
    load = SEEDED.seeded_load(speedup=2.0)
    engine = load.engines[0]
    hostile = replace(
        load,
        machine=replace(load.machine, cpu=EVIL, fingerprint="other"),
        engines=(
            replace(engine, engine=EVIL, licence=EVIL, cautions=(EVIL,)),
            replace(engine, engine="gone", status="not measured", reason=EVIL, streams=(), contexts=()),
        ),
    )
    result = seeded_result(speedup=2.0)
    page = html_page(result, None, load=hostile)
    assert "<script" not in page
    assert "49" not in re.sub(r'src="[^"]*"', "", page).split("Under load")[1].split("</h2>")[0]
    assert "measured on another machine than the rest" in page
    for text in (
        markdown_report(result, None, None, hostile),
        outputs.load("markdown").render(Verdict("pass", "", ()), result, hostile),
    ):
        assert "<script" not in text
        assert "\\| \\`a\\` \\*b\\*" in text
