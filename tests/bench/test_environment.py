"""Environments of engines: what counts as installed, and that a broken-off install does not."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tailcut.bench import environment
from tailcut.bench.engines import deepsparse, load, names
from tailcut.bench.environment import Recipe, find_python, install, installed_reason
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.results import Workload


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    lock = tmp_path / "empty.lock"
    lock.write_text("")
    return Recipe("fake", lock, (sys.version_info[:2],), "print('1.0')")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def test_an_install_is_there_only_when_its_probe_ran(recipe: Recipe, base: Path) -> None:
    assert "tailcut engines install fake" in str(installed_reason(recipe, base))
    broken = replace(recipe, probe="raise SystemExit('no AVX2 here')")
    with pytest.raises(MissingEnvironmentError, match="could not import the engine: no AVX2 here"):
        install(broken, base=base)
    assert installed_reason(broken, base) is not None
    assert list(base.iterdir()) == []  # and nothing half-made stays
    assert install(recipe, base=base) == base / "fake"
    assert installed_reason(recipe, base) is None
    with pytest.raises(InputError, match="already exists"):
        install(recipe, base=base)


def test_a_changed_lock_or_a_lost_interpreter_is_said(recipe: Recipe, base: Path) -> None:
    home = base / "fake"
    (home / "bin").mkdir(parents=True)
    mark = {"lock_sha256": environment.lock_hash(recipe)}
    (home / "installed.json").write_text(json.dumps(mark))
    assert "interpreter is gone" in str(installed_reason(recipe, base))
    (home / "bin" / "python").symlink_to(sys.executable)
    assert installed_reason(recipe, base) is None
    recipe.lock.write_text("numpy==1.26.4\n")
    assert "another lock list" in str(installed_reason(recipe, base))
    (home / "installed.json").write_text("torn {")
    assert "damaged" in str(installed_reason(recipe, base))


def test_an_interpreter_of_the_wrong_version_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    old = replace(recipe, pythons=((2, 7),))
    with pytest.raises(MissingEnvironmentError, match=r"is not a Python of 2\.7"):
        find_python(old, sys.executable)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(MissingEnvironmentError, match="none was found"):
        find_python(old)
    assert find_python(recipe)


def test_deepsparse_absent_is_a_reason_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILCUT_ENGINES", str(tmp_path))
    assert "tailcut engines install deepsparse" in str(deepsparse.available())


def test_the_lock_pins_what_was_found_to_work() -> None:
    pins = dict(line.split("==") for line in deepsparse.RECIPE.lock.read_text().split())
    assert pins["deepsparse"] == "1.8.0"  # 1.9.0 is an empty package
    assert pins["numpy"].startswith("1.")  # numpy 2 gives silently wrong results
    assert tuple(int(part) for part in pins["onnx"].split(".")[:2]) < (1, 15)


@pytest.mark.parametrize("name", names())
def test_every_engine_keeps_the_contract(name: str, tmp_path: Path) -> None:
    engine = load(name)
    reason = engine.available()
    assert reason is None or (isinstance(reason, str) and len(reason) > 10)
    assert Path(engine.where()).name.startswith("python")
    assert isinstance(engine.LICENCE, str)
    on_gpu = name.startswith("torch-")
    # engines that quantise, or compute in bfloat16 (GPU), differ from float32 by what rounding costs; logits of another
    # function differ by 1 and more
    rounds = on_gpu or name.endswith(("-int8", "-int4", "-q8", "-q4"))
    assert 0 <= engine.TOLERANCE < (1.0 if rounds else 1e-3)
    work = Workload(threads=1)
    package = tmp_path / "package"
    package.mkdir()
    assert engine.unfit(package, work)  # an empty directory is no package
    for phase in ("prefill", "decode"):
        launch = engine.launch(package, phase, work)
        assert launch.script.is_file()
        assert on_gpu or launch.settings["threads"] == 1
        assert len(launch.settings["cpus"]) == 1
        assert json.dumps(dict(launch.settings))
    assert not engine.engagement({}, zeros=10).proven  # no evidence proves nothing


@pytest.mark.parametrize(
    ("evidence", "zeros", "proven"),
    [
        ({"supported_fraction": 1.0, "zeros_seen": 100}, 100, True),
        ({"supported_fraction": 1.0, "zeros_seen": 99}, 100, False),
        ({"supported_fraction": 0.95, "zeros_seen": 100}, 100, False),
        ({"supported_fraction": 1.0, "zeros_seen": 100}, 0, False),
    ],
)
def test_deepsparse_proves_itself_by_fraction_and_zeros(evidence: dict[str, float], zeros: int, proven: bool) -> None:
    assert deepsparse.engagement(evidence, zeros).proven is proven
    assert (deepsparse.refuse(evidence) is None) == (evidence["supported_fraction"] == 1.0)


def test_deepsparse_is_batch_one_only(tmp_path: Path) -> None:
    assert "batch 1" in str(deepsparse.unfit(tmp_path, Workload(batch=2)))
