"""`tailcut sweep` on a tiny model: resumed after kills with nothing lost and nothing measured twice, bounded on disk."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut import codec, sweep, sweep_work
from tailcut.bench.store import Store
from tailcut.errors import InputError, MissingEnvironmentError
from tailcut.sweep_grid import Grid, make_grid
from tailcut.sweep_points import SweepJournal, SweepPoint
from tailcut.sweep_work import Job, Wanted

TinyModel = Callable[..., Path]
FLAGS = (
    "--allocator", "alpha", "--sparsity", "0.5", "--engine", "onnxruntime", "--baseline", "onnxruntime-int4",
    "--samples", "4", "--seqlen", "32", "--threads", "1", "--prompt-tokens", "8", "--context", "32", "--new-tokens", "4",
    "--blocks", "2", "--text-context", "32", "--windows", "4",
)  # fmt: skip
LABELS = [
    "dense float32 (onnxruntime-fused)",
    "dense int4 (onnxruntime-int4)",
    "dense float32 (onnxruntime)",
    "alpha 50 % float32 (onnxruntime)",
]
TWICE = ("--allocator", "alpha,uniform")


def command(model: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tailcut", "sweep", str(model), "-o", str(out), *FLAGS, *more]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(home / "cache"),
        "TAILCUT_BENCH_LOCK": str(home / "lock"),
        "TAILCUT_RESULTS": str(home / "results.sqlite"),
    }


def run(model: Path, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    words = command(model, out, *more)
    return subprocess.run(words, capture_output=True, text=True, env=environment(out.parent), timeout=900, check=False)


def points(out: Path) -> list[SweepPoint]:
    return [point for path in (out / "points").glob("*.json") for point in codec.load(SweepJournal, path).points]


def what_was_computed(out: Path) -> dict[str, Any]:
    """All but the timings."""
    return {point.label: (point.key, point.facts, point.quality, point.bytes_on_disk) for point in points(out)}


@pytest.fixture(scope="module")
def finished(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that went through without interruption."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    done = run(tiny_model("llama"), out)
    assert done.returncode == 0, done.stderr
    return out


def test_every_point_is_measured_once_and_the_packages_are_gone(finished: Path) -> None:
    summary = json.loads((finished / "sweep.json").read_text())
    assert [row["label"] for row in summary["rows"]] == LABELS
    assert all(row["speedup"] and row["perplexity_ratio"] for row in summary["rows"])
    assert sorted(point.label for point in points(finished)) == sorted(LABELS)
    assert len(Store(finished.parent / "results.sqlite").rows()) == len(LABELS)
    left = [path.name for path in finished.rglob("*") if path.suffix in (".onnx", ".data", ".safetensors", ".npy")]
    assert left == []
    kept = {path.name for path in (finished / "work" / "alpha-0.5").iterdir() if path.is_file()}
    assert kept == {"allocation.json", "float32.manifest.json", "scores.json"}
    page = (finished / "sweep.md").read_text()
    assert all(label.partition(" (")[0].rpartition(" ")[0] in page for label in LABELS)
    assert "<svg" in (finished / "pareto.svg").read_text()


def test_quality_and_samples_are_the_packages_own(finished: Path) -> None:
    found = {point.label: point for point in points(finished)}
    dense, cut = found[LABELS[0]], found[LABELS[3]]
    assert dense.perplexity_ratio is not None
    assert dense.perplexity_ratio.value == dense.perplexity_ratio.low == 1.0
    assert cut.facts is not None
    # Wanda removes floor(in * s) of every row: at most one weight a row below the plan, rows have 32 weights or more
    assert 0.5 - 1 / 32 <= cut.facts.sparsity <= 0.5
    assert [len(block) for block in cut.ms] == [2] * 4  # two visits a block, half of --new-tokens each
    assert len(cut.reference_ms) == 4
    assert not cut.sparse_kernel  # ONNX Runtime has none


def test_a_second_run_measures_nothing_and_a_wider_grid_only_what_is_new(
    finished: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    done = run(tiny_model("llama"), out, "--json")
    assert done.returncode == 0, done.stderr
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed <= {"sweep.json"}
    assert json.loads(done.stdout)["schema"] == "tailcut/SweepSummary"
    done = run(tiny_model("llama"), out, "--pattern", "unstructured,2:4", "--allocator", "alpha")
    assert done.returncode == 0, done.stderr
    changed = {path.parent.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed <= {"out"}  # the summary; scores.json only if more is measured
    assert {point.label for point in points(out)} - set(LABELS) == {"uniform 2:4 float32 (onnxruntime)"}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--sparsity", "1.2"), "sparsity must be in [0, 1)"),
        (("--sparsity", "half"), "list of fractions"),
        (("--allocator", "os.system"), "unknown allocator"),
        (("--engine", "none"), "at least one engine"),
        (("--pattern", "2:4"), "a pattern fixes the sparsity"),
        (("--calibration", "/no/such/file.txt", "--allocator", "owl"), "cannot read the text"),
    ],
)
def test_bad_settings_are_one_sentence(
    flags: tuple[str, ...], sentence: str, tailcut: Callable[..., tuple[int, str, str]], tiny_model: TinyModel,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    code, _, errors = tailcut("sweep", tiny_model("llama"), "-o", tmp_path / "out", *FLAGS, *flags)
    assert code == 2
    assert sentence in errors
    assert "Traceback" not in errors


class Fake:
    """The heavy pieces of a sweep: made packages are directories, sessions are a list, some rows fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sweep_point: Callable[..., SweepPoint]) -> None:
        self.sessions: list[list[str]] = []
        self.most_packages = 0
        self.failing: set[str] = set()
        self.point = sweep_point
        monkeypatch.setattr(sweep, "make_dense", lambda job, weights: self.make(job, None, weights))
        monkeypatch.setattr(sweep, "make_package", self.make)
        monkeypatch.setattr(sweep, "prepare", lambda job, rows: None)
        monkeypatch.setattr(sweep, "run_session", self.session)

    def make(self, job: Job, cut: Any, weights: str) -> None:
        (job.directory(cut) / weights).mkdir(parents=True, exist_ok=True)
        (job.directory(cut) / "model").mkdir(exist_ok=True)
        self.most_packages = max(self.most_packages, len(list((job.out / "work").glob("*/*"))))

    def session(self, job: Job, rows: Sequence[Wanted]) -> tuple[SweepPoint, ...]:
        self.sessions.append([str(row) for row in rows])
        return tuple(self.one(row) for row in rows)

    def one(self, row: Wanted) -> SweepPoint:
        failed = str(row) in self.failing
        point = self.point(row.cut and row.cut.allocator, 0.5, None if failed else (1.0, 1.1), (1.0, 1.1))
        return replace(point, key=row.key, reason="died" if failed else "")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, sweep_point: Callable[..., SweepPoint]) -> Fake:
    return Fake(monkeypatch, sweep_point)


@pytest.fixture
def grid(tiny_model: TinyModel) -> Grid:
    settings = {"allocator": ["alpha", "uniform"], "sparsity": [0.5, 0.6], "weights": ["float32", "int8"]}
    engines = {"engines": ["onnxruntime"], "baselines": ["onnxruntime-int4"]}
    return make_grid({"model": str(tiny_model("llama"))} | settings | engines, "test")


def test_a_failed_row_is_asked_again_only_on_request(fake: Fake, grid: Grid, tmp_path: Path) -> None:
    lost = "alpha 60 % int8 (onnxruntime)"
    fake.failing = {lost}
    first = sweep.sweep(grid, tmp_path)
    assert [point.reason for point in first.points].count("died") == 1
    fake.sessions.clear()
    assert sweep.sweep(grid, tmp_path) == first
    assert fake.sessions == []
    fake.failing = set()
    again = sweep.sweep(grid, tmp_path, retry=True)
    assert fake.sessions == [[lost]]
    assert all(point.ms for point in again.points)
    assert sweep.sweep(grid, tmp_path, retry=True) == again
    assert fake.sessions == [[lost]]


def test_a_plan_that_cannot_be_made_is_a_reason_and_the_others_go_on(
    fake: Fake, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(job: Job, cut: Any, weights: str) -> None:
        if str(cut) == "alpha 60 %":
            raise InputError("no layer may lose so much")
        fake.make(job, cut, weights)

    monkeypatch.setattr(sweep, "make_package", make)
    swept = sweep.sweep(grid, tmp_path)
    reasons = {point.reason for point in swept.points if point.allocator == "alpha" and point.sparsity == 0.6}
    assert reasons == {"no layer may lose so much"}
    assert sum(bool(point.ms) for point in swept.points) == len(swept.points) - 2
    fake.sessions.clear()
    assert sweep.sweep(grid, tmp_path) == swept
    assert fake.sessions == []


def test_one_plan_at_a_time_is_on_disk_unless_all_are_kept(fake: Fake, grid: Grid, tmp_path: Path) -> None:
    sweep.sweep(grid, tmp_path / "lean")
    assert fake.most_packages == 2  # the model and one package
    assert list((tmp_path / "lean").rglob("float32")) == []
    sweep.sweep(grid, tmp_path / "kept", keep=True)
    assert len(list((tmp_path / "kept" / "work").glob("*/*"))) == 4 * 3


def test_points_of_earlier_runs_are_recorded_again_and_a_foreign_point_is_not_ours(
    fake: Fake, grid: Grid, tmp_path: Path
) -> None:
    sweep.sweep(grid, tmp_path)
    recorded: list[SweepPoint] = []
    swept = sweep.sweep(grid, tmp_path, record=recorded.extend)  # the kill came before the store had them
    assert tuple(recorded) == swept.points
    fake.sessions.clear()
    path = next((tmp_path / "points").glob("*.json"))
    held = codec.load(SweepJournal, path).points
    codec.save(SweepJournal(tuple(replace(point, key="of another model") for point in held)), path)
    sweep.sweep(grid, tmp_path)
    assert sum(map(len, fake.sessions)) == len(held)


def test_a_full_disk_and_absent_engines_are_said_before_any_work(
    fake: Fake, grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MissingEnvironmentError, match="of disk at once"):
        sweep.sweep(grid, tmp_path)
    monkeypatch.setattr("tailcut.bench.engines.onnxruntime.available", lambda: "it is not there")
    with pytest.raises(MissingEnvironmentError, match=r"no engine that takes cut packages.*it is not there"):
        sweep.sweep(grid, tmp_path)
    assert fake.sessions == []


def test_a_directory_with_something_else_in_it_is_left_alone(fake: Fake, grid: Grid, tmp_path: Path) -> None:
    package = tmp_path / "dense" / "model.onnx"  # as `tailcut run` leaves it
    package.parent.mkdir()
    package.touch()
    with pytest.raises(InputError, match="something else than a sweep"):
        sweep.sweep(grid, tmp_path)
    assert package.exists()


def test_what_a_point_depends_on_is_in_its_key(grid: Grid, tmp_path: Path) -> None:
    def keys(**changes: Any) -> set[str]:
        changed = replace(grid, recipe=replace(grid.recipe, **changes))
        return {row.key for row in sweep_work.wanted(sweep.open_job(changed, tmp_path, lambda *_: None))}

    base = keys()
    assert len(base) == 1 + 1 + 2 + 4 * 2  # reference, int4 peer, dense in two precisions, four plans in two
    for setting in ({"seed": 1}, {"blocks": 3}, {"windows": 5}, {"context": 300}, {"kv_cache": "float16"}):
        assert not keys(**setting) & base, setting
    cut_only = keys(pruner="magnitude")
    assert len(cut_only & base) == 4  # the dense rows do not care how others are cut
    assert keys(max_ppl_ratio=1.5) == base


# A sweep whose heavy pieces take milliseconds, in a process of its own; says when a session begins.
QUICK = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from tailcut import codec, sweep
from tailcut.bench.store import Store
from tailcut.sweep_grid import Grid
from tailcut.sweep_points import SweepPoint
grid, point, out = codec.load(Grid, Path(sys.argv[1])), codec.load(SweepPoint, Path(sys.argv[2])), Path(sys.argv[3])

def make(job, cut, weights):
    for name in ("model", weights):
        (job.directory(cut) / name).mkdir(parents=True, exist_ok=True)
        (job.directory(cut) / name / "weights").write_bytes(bytes(100_000))

def session(job, rows):
    print("session", json.dumps([row.key for row in rows]), flush=True)
    time.sleep(0.02)
    return tuple(replace(point, key=row.key, allocator=row.cut and row.cut.allocator) for row in rows)

sweep.make_dense = lambda job, weights: make(job, None, weights)
sweep.make_package, sweep.run_session, sweep.prepare = make, session, lambda job, rows: None
swept = sweep.sweep(grid, out, record=Store(out.with_name("results.sqlite")).append)
print("end", len(swept.points), flush=True)
"""


def test_kill_9_at_random_moments_measures_no_journalled_session_again(
    tiny_model: TinyModel, sweep_point: Callable[..., SweepPoint], tmp_path: Path
) -> None:
    axes = {"allocator": ["alpha", "uniform"], "sparsity": [0.5, 0.6, 0.7], "weights": ["float32", "int8"]}
    grid = make_grid({"model": str(tiny_model("llama")), "engines": "onnxruntime"} | axes, "test")
    codec.save(grid, tmp_path / "grid.json")
    codec.save(sweep_point("alpha", 0.5, (1.0, 1.1), (1.0, 1.1)), tmp_path / "point.json")
    words = [sys.executable, "-c", QUICK, *(str(tmp_path / name) for name in ("grid.json", "point.json", "out"))]
    rng, killed, ended = np.random.default_rng(7), 0, False
    while not ended:
        before = {point.key for point in points(tmp_path / "out")}
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(rng.integers(1, 4)):
            line = process.stdout.readline()
            ended = ended or line.startswith("end")
            assert line.startswith(("session", "end")), process.communicate()[1]
            again = set(json.loads(line.partition(" ")[2])) & before if line.startswith("session") else set()
            assert again == set()
            if ended:
                break
        time.sleep(float(rng.uniform(0.0, 0.06)))
        process.kill()
        process.communicate()
        killed += not ended
    assert killed >= 4
    assert len(points(tmp_path / "out")) == 1 + 2 + 2 + 6 * 2  # reference, two peers, dense in two precisions, plans
    assert list((tmp_path / "out").rglob("weights")) == []
    store = Store(tmp_path / "results.sqlite")
    recorded = [store.raw(row.id).key for row in store.rows()]  # type: ignore[union-attr]
    assert sorted(recorded) == sorted(point.key for point in points(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_in_a_real_sweep_loses_nothing_and_measures_nothing_twice(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Killed when so many lines of progress have been seen: at work, however busy the machine is."""
    whole, out, rng = tmp_path / "whole" / "out", tmp_path / "out", np.random.default_rng(20261122)
    whole.parent.mkdir()
    assert run(tiny_model("llama"), whole, *TWICE).returncode == 0
    held: dict[Path, tuple[int, bytes]] = {}
    for lines in (*rng.integers(4, 24, 4), None):
        process = subprocess.Popen(
            command(tiny_model("llama"), out, *TWICE), env=environment(tmp_path), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        for line in itertools.islice(process.stderr, lines):
            assert "Traceback" not in line
        if lines is not None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == (0 if lines is None else -signal.SIGKILL)
        for path, was in held.items():  # whatever was measured or scored is never written again
            assert (path.stat().st_mtime_ns, path.read_bytes()) == was, path
        done = [path for folder in ("points", "nats") for path in (out / folder).glob("*.json")]
        held = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done}
    assert what_was_computed(out) == what_was_computed(whole)
    assert len(points(out)) == len(LABELS) + 1  # no point is in two sessions
    store = Store(tmp_path / "results.sqlite")
    recorded = [store.raw(row.id).key for row in store.rows()]  # type: ignore[union-attr]
    assert sorted(recorded) == sorted(point.key for point in points(out))  # a second measurement would be a second row
    assert [path for path in out.rglob("*") if ".tmp-" in path.name or path.suffix == ".work"] == []
