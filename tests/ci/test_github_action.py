"""The composite action: its YAML is read, and every shell step runs as GitHub's runner would run it."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "actions" / "tailcut-gate"
ACTION: dict[str, Any] = yaml.safe_load((FOLDER / "action.yml").read_text())
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
# how GitHub starts `shell: bash`
BASH = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"]
BENCH = "--threads=1\n--prompt=8\n\n--context=32\n--new-tokens=8\n--blocks=2\n"


@dataclass
class Job:
    """What a runner keeps while the steps of the action run."""

    project: Any  # the fixture's value; test files import no other
    inputs: dict[str, str]
    folder: Path
    log: str = ""
    failed: int = 0
    uploads: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("summary", "output", "path"):
            (self.folder / name).touch()
        defaults = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
        assert set(self.inputs) <= set(defaults)
        self.inputs = {**defaults, "install": "none", **self.inputs}

    def value(self, text: str) -> str:
        """`${{ … }}` of the two kinds that the action uses."""

        def found(match: "re.Match[str]") -> str:
            kind, name = match.group(1).strip().split(".", 1)
            return self.inputs[name] if kind == "inputs" else {"action_path": str(FOLDER)}[name]

        return re.sub(r"\$\{\{(.*?)\}\}", found, text)

    def wanted(self, step: dict[str, Any]) -> bool:
        terms = [term.strip() for term in step.get("if", "").split("&&") if term.strip()]
        always = "always()" in terms
        for term in terms:
            if term != "always()":
                match = re.fullmatch(r"inputs\.([a-z-]+) (==|!=) '(.*)'", term)
                assert match, term
                if (self.inputs[match[1]] == match[3]) != (match[2] == "=="):
                    return False
        return always or not self.failed

    def run(self) -> "Job":
        for step in STEPS:
            if not self.wanted(step):
                continue
            if "uses" in step:
                self.uploads.append({name: self.value(text) for name, text in step["with"].items()})
                continue
            settings = {name: self.value(text) for name, text in step.get("env", {}).items()}
            settings |= {f"GITHUB_{name}": str(self.folder / name.lower()) for name in ("OUTPUT", "PATH")}
            settings |= {"GITHUB_STEP_SUMMARY": str(self.folder / "summary"), "RUNNER_TEMP": str(self.folder)}
            done = self.project.run(BASH, f"exec 2>&1\n{step['run']}", settings)  # the runner reads both as one
            self.log += done.stdout
            self.failed = self.failed or done.returncode
        return self

    @property
    def outputs(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in (self.folder / "output").read_text().splitlines())


@pytest.fixture
def job(project: Any, tmp_path: Path) -> Any:
    def make(**inputs: str) -> Job:
        folder = tmp_path / "runner"
        folder.mkdir()
        return Job(project, {name.replace("_", "-"): text for name, text in inputs.items()}, folder).run()

    return make


def test_no_input_is_part_of_a_script() -> None:
    """An expression inside `run` is pasted in before the shell reads it: a file name could be a command."""
    assert all("${{" not in step.get("run", "") for step in STEPS)
    assert all(step["shell"] == "bash" for step in STEPS if "run" in step)


def test_every_input_and_output_is_used_and_described() -> None:
    text = (FOLDER / "action.yml").read_text().split("runs:", 1)[1]
    for name, one in ACTION["inputs"].items():
        assert one["description"]
        assert f"inputs.{name}" in text
    assert all(one["description"] and "steps.gate.outputs" in one["value"] for one in ACTION["outputs"].values())


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_a_job_that_measures_and_passes(job: Any) -> None:
    done = job(
        policy="pass.yaml",
        dense="packages/dense",
        sparse="packages/sparse",
        engines="onnxruntime",
        bench_arguments=BENCH,
    )
    assert done.failed == 0, done.log
    assert done.outputs == {"outcome": "pass", "exit-code": "0"}
    kept = done.project.path / done.uploads[0]["path"]
    result = json.loads((kept / "result.json").read_text())
    assert result["workload"]["prompt_tokens"] == 8  # the arguments arrived, one a line
    assert "tailcut gate: pass" in (done.folder / "summary").read_text()
    assert ET.parse(kept / "junit.xml").getroot().get("failures") == "0"  # noqa: S314  (made just now)
    names = {path.name for path in kept.iterdir()}
    assert names >= {"verdict.json", "report.html", "bigger-is-better.json", "smaller-is-better.json"}


def test_a_failing_gate_fails_the_job_says_why_and_still_keeps_the_report(job: Any) -> None:
    done = job(policy="fail.yaml", result="result.json")
    assert done.failed == 1
    assert done.outputs["outcome"] == "fail"
    assert re.search(r"^::error title=tailcut gate%3A size", done.log, re.MULTILINE)
    assert "size" in (done.folder / "summary").read_text()
    assert (done.project.path / done.uploads[0]["path"] / "report.html").is_file()


@pytest.mark.parametrize(("setting", "code"), [("fail", 3), ("warn", 0), ("maybe", 2)])
def test_an_undecided_gate_does_what_the_job_says(job: Any, setting: str, code: int) -> None:
    done = job(policy="inconclusive.yaml", result="result.json", inconclusive=setting)
    assert done.failed == code
    if code != 2:
        assert done.outputs == {"outcome": "inconclusive", "exit-code": "3"}
        assert "::warning title=tailcut gate" in done.log


def test_a_wrong_policy_has_no_verdict(job: Any) -> None:
    done = job(policy="wrong.yaml", result="result.json", artifact="")
    assert done.failed == 2
    assert "max_size_ratio" in done.log  # the key that was meant
    assert done.outputs == {}
    assert done.uploads == []


def test_a_measurement_that_cannot_be_made_stops_the_job_and_ends_the_silence(job: Any) -> None:
    """Commands are read again after the failed step, and nothing is judged."""
    done = job(policy="pass.yaml", dense="none", sparse="none", engines="onnxruntime")
    assert done.failed == 2
    assert done.outputs == {}
    (token,) = re.findall(r"::stop-commands::(\w+)", done.log)
    assert done.log.rstrip().endswith(f"::{token}::")


def test_names_cannot_command_the_runner(job: Any, project: Any) -> None:
    """What the gate prints stands between two marks of the job's own, and is not read for commands."""
    result = json.loads((project.path / "result.json").read_text())
    evil = "x\n::set-env name=OWNED::1\n##[add-mask]x"
    result["engines"][0]["engagement"]["reason"] = evil
    (project.path / "evil.json").write_text(json.dumps(result))
    done = job(policy="pass.yaml", result="evil.json", gate_arguments="--limit=min_speedup=0.1")
    assert done.failed == 0, done.log
    assert "##[add-mask]" in done.log
    outside = re.sub(r"::stop-commands::(\w+)\n.*?::\1::\n", "", done.log, flags=re.DOTALL)
    begun = [line for line in outside.splitlines() if line.lstrip().startswith("::")]
    assert begun
    assert all(line.startswith("::notice title=tailcut gate%3A pass::") for line in begun)


def test_an_input_is_never_a_command(job: Any, project: Any) -> None:
    evil = "$(touch owned) `touch owned`; touch owned"
    done = job(policy=evil, result=evil, gate_arguments=f"--limit={evil}\n--engine={evil}", directory="a b")
    assert done.failed == 2, done.log
    assert not list(project.path.rglob("owned"))


def test_the_installation_is_the_actions_own_version_in_an_environment_of_its_own(job: Any, project: Any) -> None:
    """With a stand-in interpreter that notes what it is asked for."""
    fake = project.bin / "python-of-the-job"
    fake.write_text(
        '#!/bin/sh\necho "$@" >> calls\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi\n'
    )
    fake.chmod(0o755)
    done = job(policy="pass.yaml", result="result.json", install="", python=str(fake))
    assert done.failed == 0, done.log
    venv, pip = (project.path / "calls").read_text().splitlines()
    assert venv == f"-m venv {done.folder}/tailcut"
    source = Path(pip.split()[-1].removesuffix("[report]"))
    assert (source / "pyproject.toml").is_file()
    assert source.resolve() == ROOT
    assert (done.folder / "path").read_text() == f"{done.folder}/tailcut/bin\n"
