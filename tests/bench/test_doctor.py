"""`tailcut doctor`: all probes in one value, its exit code, and what an odd machine does to it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tailcut import codec
from tailcut.bench import probes
from tailcut.bench.doctor import Examination, examine
from tailcut.bench.probes import GROUPS, Finding, System, bandwidth, governor, noise, others
from tailcut.kernels import library

Tailcut = Callable[..., tuple[int, str, str]]


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring probes that do not take seconds."""
    monkeypatch.setattr(noise, "_SECONDS", 0.0)
    monkeypatch.setattr(others, "_SECONDS", 0.01)
    monkeypatch.setattr(bandwidth, "measure_bandwidth", lambda threads, passes: ())
    monkeypatch.setattr(bandwidth, "probe", lambda system: Finding("good", "10 GB/s"))


@pytest.mark.usefixtures("_fast")
def test_everything_in_its_place() -> None:
    found = examine()
    assert sorted(one.probe for one in found.findings) == sorted(probes.names())
    groups = [GROUPS.index(one.group) for one in found.findings]
    assert groups == sorted(groups)
    assert codec.from_json(Examination, codec.to_json(found), "doctor") == found
    assert found.can_run


def test_a_probe_that_stumbles_hides_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stumbles(system: System) -> Finding:
        raise ValueError("a file from another planet")

    monkeypatch.setattr(governor, "probe", stumbles)
    found = {one.probe: one for one in examine(measure=False, system=System(tmp_path)).findings}
    assert found["governor"].level == "unknown"
    assert "another planet" in found["governor"].sentence
    assert len(found) == sum(not probes.load(name).MEASURES for name in probes.names())


@pytest.mark.usefixtures("_fast")
def test_the_command(tailcut: Tailcut, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, shown, _ = tailcut("doctor")
    assert code == 0
    assert "tailcut's kernels run here" in shown
    assert "read bandwidth" in shown
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "none.so")
    code, shown, _ = tailcut("doctor", "--quick")
    assert code == 4
    assert "cannot run here" in shown
    assert "read bandwidth" not in shown
    code, shown, _ = tailcut("doctor", "--quick", "--json")
    assert code == 4
    kernels = next(one for one in json.loads(shown)["findings"] if one["probe"] == "kernels")
    assert kernels["level"] == "blocked"
    assert "tailcut engines install tailcut" in kernels["advice"]
