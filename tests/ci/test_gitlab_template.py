"""The GitLab template: its YAML is read, and its script runs as a GitLab runner would run it."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "ci" / "gitlab.yml").read_text())
JOB: dict[str, Any] = TEMPLATE[".tailcut-gate"]
# a runner writes the lines of `script` one after the other into one script that stops at the first error
SHELL = ["sh", "-e"]
MEASURING = {
    "TAILCUT_DENSE": "packages/dense",
    "TAILCUT_SPARSE": "packages/sparse",
    "TAILCUT_ENGINES": "onnxruntime",
    "TAILCUT_BENCH_ARGUMENTS": "--threads 1 --prompt 8 --context 32 --new-tokens 8 --blocks 2",
}


@pytest.fixture
def job(project: Any) -> Any:
    def run(**variables: str) -> Any:
        assert set(variables) <= set(JOB["variables"])
        return project.run(SHELL, "\n".join(JOB["script"]), {**JOB["variables"], **variables})

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("packages")
def test_a_job_that_measures_and_passes_leaves_what_it_promises(job: Any, project: Any) -> None:
    done = job(**MEASURING, TAILCUT_POLICY="pass.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    for report in JOB["artifacts"]["reports"].values():
        assert (project.path / report).is_file()
        assert any(report.startswith(path) for path in JOB["artifacts"]["paths"])
    assert json.loads((project.path / "tailcut-gate" / "codequality.json").read_text()) == []
    assert (project.path / "tailcut-gate" / "report.html").is_file()


@pytest.mark.parametrize(("policy", "code"), [("fail", 1), ("inconclusive", 3), ("wrong", 2)])
def test_the_job_ends_as_the_gate_does_and_its_reports_are_there(
    job: Any, project: Any, policy: str, code: int
) -> None:
    done = job(TAILCUT_RESULT="result.json", TAILCUT_POLICY=f"{policy}.yaml")
    assert done.returncode == code, done.stdout + done.stderr
    if code != 2:
        suite = ET.parse(project.path / "tailcut-gate" / "junit.xml").getroot()  # noqa: S314  (made just now)
        assert (suite.get("failures"), suite.get("errors")) == (("1", "0") if code == 1 else ("0", "1"))
        assert len(json.loads((project.path / "tailcut-gate" / "codequality.json").read_text())) == 1
    assert JOB["artifacts"]["when"] == "always"


def test_an_image_without_tailcut_is_one_sentence(job: Any, project: Any) -> None:
    (project.bin / "tailcut").unlink()
    script = "PATH=/usr/bin:/bin\n" + "\n".join(JOB["script"])
    done = project.run(SHELL, script, JOB["variables"])
    assert done.returncode == 4
    assert done.stderr.strip() == "tailcut is not in this image; set TAILCUT_INSTALL to what pip shall install"


def test_a_variable_is_never_a_command(job: Any, project: Any) -> None:
    done = job(TAILCUT_RESULT="result.json", TAILCUT_POLICY="$(touch owned); touch owned")
    assert done.returncode == 2
    assert not (project.path / "owned").exists()
