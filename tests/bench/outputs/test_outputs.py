"""Every output format: what its readers demand of it, and that no name can break out of it."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailcut import codec, plugins
from tailcut.bench import outputs
from tailcut.bench.gate import seeded_result
from tailcut.bench.outputs import FOLDER, Wanted, wanted, wanted_all, write
from tailcut.errors import InputError
from tailcut.results import BenchResult, Check, EngineResult, Outcome, Quality, Ratio, Verdict

FORMATS = plugins.names(FOLDER)
# one attack a reader: markup, a workflow command on a line of its own (old style and new), Markdown structure, a
# property's and a label's end, colours of a terminal, text that XML and UTF-8 cannot hold
EVIL = (
    '</script><script>alert("x")</script>]]> & `a` *b* | [c](d)\n::error title=owned::owned\r##[add-mask]x\n'
    '%0A::set-env name=PATH::x \x1b[31m\x00\ud800\uffff "} 1\n# EOF ,title=x'
)


def result_of(name: str) -> BenchResult:
    result = seeded_result(speedup=2.0)
    engine = replace(result.engines[0], engine=name, licence=name, cautions=(name,))
    quality = Quality(name, "", name, 8, None, 7, 10.0, 12.0, Ratio(1.2, 1.1, 1.3, 0.95), (1.0,), (1.1,), notes=(name,))
    machine = replace(result.machine, cpu=name, fingerprint=name)
    absent = EngineResult(name + "2", "not measured", name)
    return replace(result, machine=machine, engines=(engine, absent), quality=(quality,), made_by=name)


def verdict_of(name: str) -> Verdict:
    """One check of every outcome; the failing one twice, as two texts of one name give it."""
    ends = Check(name, "fail", 1.5, 1.1, 1.0, 1.2, name, name)
    checks = (
        Check("decode speedup", "pass", 1.5, 2.0, 1.9, 2.1, "fine"),
        ends,
        ends,
        Check("b", "inconclusive", 1, 1, 0, 2, name),
    )
    return Verdict("fail", name, checks, name)


def honest_verdict(outcome: Outcome = "fail", value: float = 1.1) -> Verdict:
    sentence = f"decode speedup {value}, at least 1.5 is required"
    check = Check("decode speedup", outcome, 1.5, value, value - 0.1, value + 0.1, sentence, "seeded")
    return Verdict(outcome, "seeded", (check,), "judged on seeded")


@pytest.fixture
def evil() -> Callable[[str], str]:
    """evil(format) -> that format's text of a result and a verdict in which every name is an attack."""
    return lambda name: outputs.load(name).render(verdict_of(EVIL), result_of(EVIL))


@pytest.fixture
def honest() -> Callable[[str], str]:
    result = seeded_result(speedup=1.1)
    return lambda name: outputs.load(name).render(honest_verdict(), result)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_a_pure_function_with_a_line_of_help(name: str, honest: Callable[[str], str]) -> None:
    assert "\n" not in outputs.load(name).HELP
    assert honest(name) == honest(name)
    assert honest(name).endswith("\n") or name == "html"


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "json"])
def test_no_control_character_or_line_of_an_attack_survives(name: str, evil: Callable[[str], str]) -> None:
    """In no format does a line begin with a workflow command that a name brought, or a terminal's escape appear."""
    text = evil(name)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text)
    begun = [line for line in text.splitlines() if line.lstrip().startswith("::")]
    assert all(re.match(r"::(error|warning|notice) title=tailcut gate%3A ", line) for line in begun)
    assert len(begun) == (4 if name == "github" else 0)
    text.encode()  # no surrogate is left


# Jenkins' junit-10.xsd (jenkinsci/xunit-plugin): the attributes of each element, and its children
SCHEMA = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname", "id", "package"},
        {"properties", "testcase", "system-out"},
    ),
    "properties": (set(), {"property"}),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "time", "classname"}, {"skipped", "error", "failure", "system-out"}),
    "failure": ({"type", "message"}, set()),
    "error": ({"type", "message"}, set()),
    "system-out": (set(), set()),
}


@pytest.mark.parametrize("kind", ["honest", "evil"])
def test_junit_has_only_what_its_schema_knows(kind: str, request: pytest.FixtureRequest) -> None:
    root = parsed(request.getfixturevalue(kind)("junit"))
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = SCHEMA[element.tag]
        assert set(element.attrib) <= attributes
        assert {child.tag for child in element} <= children
    assert {"name", "tests", "failures", "errors"} <= set(root[0].attrib)
    assert all({"name", "classname"} <= set(case.attrib) for case in root.iter("testcase"))


def test_junit_counts_an_inconclusive_check_as_an_error_and_never_as_skipped(evil: Callable[[str], str]) -> None:
    suite = parsed(evil("junit"))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "4",
        "2",
        "1",
        "0",
    )
    assert len(suite.findall("testcase/failure")) == 2
    assert [error.get("type") for error in suite.findall("testcase/error")] == ["inconclusive"]


def test_junit_of_nothing_judged_is_not_green() -> None:
    text = outputs.load("junit").render(Verdict("pass", "", (), "no limits"), seeded_result(speedup=2.0))
    assert parsed(text)[0].get("errors") == "1"


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314  (our own output, just made)


def unescaped(text: str) -> str:
    """As actions/runner's ActionCommand.cs reads a command's data and properties back."""
    for token, original in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(token, original)
    return text


def test_github_annotations_read_back_as_one_property_and_the_sentence(evil: Callable[[str], str]) -> None:
    for line in evil("github").splitlines():
        head, data = line[2:].split("::", 1)
        properties = head.split(" ", 1)[1].split(",")
        assert len(properties) == 1
        assert "\n" not in unescaped(properties[0])
        assert "\n" not in unescaped(data)
    assert "title=owned::owned" in unescaped(evil("github"))  # the attack is there to read, as text


def test_an_outcome_has_its_own_level_of_annotation() -> None:
    levels: dict[Outcome, str] = {"pass": "notice", "fail": "error", "inconclusive": "warning"}
    for outcome, level in levels.items():
        lines = outputs.load("github").render(honest_verdict(outcome), seeded_result(speedup=2.0)).splitlines()
        assert all(line.startswith(f"::{level} ") for line in lines)
        assert len(lines) == (1 if outcome == "pass" else 2)


def test_codequality_has_gitlabs_fields_and_a_fingerprint_for_each_finding(evil: Callable[[str], str]) -> None:
    found = json.loads(evil("gitlab-codequality"))
    assert len(found) == 3
    assert len({one["fingerprint"] for one in found}) == 3
    for one in found:
        assert {"description", "check_name", "fingerprint", "severity", "location"} == set(one)
        assert one["severity"] in {"info", "minor", "major", "critical", "blocker"}
        assert one["location"]["lines"]["begin"] == 1
        assert not one["location"]["path"].startswith("/")


def test_a_failing_check_keeps_its_fingerprint_when_its_value_changes() -> None:
    prints = set()
    for value in (1.1, 1.2):
        text = outputs.load("gitlab-codequality").render(honest_verdict("fail", value), seeded_result(speedup=2.0))
        prints |= {one["fingerprint"] for one in json.loads(text)}
    assert len(prints) == 1


SAMPLE = re.compile(r'(tailcut_\w+)(?:\{((?:\w+="(?:[^"\\\n]|\\.)*",?)+)\})? (-?[\d.e+-]+)')


@pytest.mark.parametrize("kind", ["honest", "evil"])
def test_openmetrics_is_its_grammar_line_by_line(kind: str, request: pytest.FixtureRequest) -> None:
    lines = request.getfixturevalue(kind)("openmetrics").splitlines()
    assert lines[-1] == "# EOF"
    assert lines.count("# EOF") == 1
    samples = [match for line in lines[:-1] if (match := SAMPLE.fullmatch(line))]
    described = [line for line in lines[:-1] if re.match(r"# (TYPE|HELP) tailcut_\w+ ", line)]
    assert len(samples) + len(described) == len(lines) - 1
    assert len({(match[1], match[2]) for match in samples}) == len(samples)  # no series twice
    assert {match[1] for match in samples} >= {"tailcut_gate", "tailcut_decode_speedup", "tailcut_sparse_package_mb"}


@pytest.mark.parametrize(
    ("name", "has"), [("benchmark-bigger", "decode speedup"), ("benchmark-smaller", "sparse time")]
)
def test_benchmark_series_have_the_actions_fields(name: str, has: str, evil: Callable[[str], str]) -> None:
    entries = json.loads(evil(name))
    assert any(has in entry["name"] for entry in entries)
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert {"name", "unit", "value", "extra"} <= set(entry) <= {"name", "unit", "value", "extra", "range"}
        assert isinstance(entry["value"], float)
        assert all(isinstance(entry[key], str) for key in entry if key != "value")


def test_no_number_is_in_both_series_and_a_new_machine_begins_new_ones(honest: Callable[[str], str]) -> None:
    names = [{entry["name"] for entry in json.loads(honest(f"benchmark-{way}"))} for way in ("bigger", "smaller")]
    assert not names[0] & names[1]
    result = seeded_result(speedup=2.0)
    other = replace(result, machine=replace(result.machine, fingerprint="another"))
    verdict = honest_verdict()
    bigger = outputs.load("benchmark-bigger")
    first, second = ({one["name"] for one in json.loads(bigger.render(verdict, r))} for r in (result, other))
    assert not first & second


def test_markdown_keeps_every_row_a_row_and_says_the_outcome_in_words(evil: Callable[[str], str]) -> None:
    text = evil("markdown")
    assert "<script" not in text
    assert text.startswith("## ❌ tailcut gate: fail\n")
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert widths[:6] == [4] * 6  # header, rule and one row for each of the four checks
    assert set(widths[6:]) <= {4, 5, 6, 9}


def test_html_is_the_reports_page(evil: Callable[[str], str]) -> None:
    page = evil("html")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_what_an_output_option_may_say(tmp_path: Path) -> None:
    assert wanted("verdict.json") == Wanted("json", Path("verdict.json"))
    assert wanted("junit=a=b.xml") == Wanted("junit", Path("a=b.xml"))
    assert wanted("github=-") == Wanted("github", None)
    assert wanted("./junit=x") == Wanted("json", Path("./junit=x"))
    assert wanted("benchmark_bigger=x").format == "benchmark-bigger"
    for bad, says in (("juint=x", "junit"), ("junit=", "names no file"), ("os=x", "choose one of"), ("", "no file")):
        with pytest.raises(InputError, match=says):
            wanted(bad)
    with pytest.raises(InputError, match="stdout"):
        wanted_all(["github=-", "json=-"])
    with pytest.raises(InputError, match=r"gate\.xml"):
        wanted_all(["junit=gate.xml", "gate.xml"])


def test_nothing_is_written_when_one_format_cannot_be_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise InputError("cannot")

    monkeypatch.setattr(outputs.load("junit"), "render", broken)
    chosen = wanted_all([f"json={tmp_path / 'v.json'}", f"junit={tmp_path / 'v.xml'}"])
    with pytest.raises(InputError):
        write(chosen, honest_verdict(), seeded_result(speedup=2.0))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_every_format_and_keeps_its_exit_code(tmp_path: Path, tailcut: Any) -> None:
    result = tmp_path / "result.json"
    codec.save(seeded_result(speedup=1.1), result)
    chosen = [word for name in FORMATS for word in ("--output", f"{name}={tmp_path / name}.out")]
    code, out, _ = tailcut("gate", result, "--min-speedup", "1.5", *chosen)
    assert code == 1
    assert "verdict: fail" in out
    assert {path.stem for path in tmp_path.glob("*.out")} == set(FORMATS)
    assert codec.load(Verdict, tmp_path / "json.out").outcome == "fail"
    code, out, _ = tailcut("gate", result, "--min-speedup", "1.5", "-o", "github=-")
    assert code == 1
    assert all(line.startswith("::") for line in out.splitlines())
    code, _, err = tailcut("gate", result, "--min-speedup", "1.5", "-o", "juint=x")
    assert code == 2
    assert "junit" in err
