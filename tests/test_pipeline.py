"""`tailcut run` on a tiny model: the whole street, resumed after kills, and what it says about bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailcut.errors import InputError
from tailcut.manifest import read_manifest
from tailcut.pipeline import plan
from tailcut.pipeline_work import Run
from tailcut.recipe import Recipe
from tailcut.stages import Stage, run_stages

TinyModel = Callable[..., Path]
# what a run computes; result.json, verdict.json and the reports hold timings
COMPUTED = ("recipe.json", "scores.json", "spectra.npz", "allocation.json", "quality.json", "model", "dense", "package")
FLAGS = (
    "--sparsity", "0.6", "--pruner", "wanda", "--samples", "4", "--seqlen", "32", "--engines", "onnxruntime",
    "--threads", "1", "--prompt-tokens", "8", "--context", "32", "--new-tokens", "8", "--blocks", "2",
    "--text-context", "32", "--windows", "4", "--max-ppl-ratio", "100",
)  # fmt: skip


def command(model: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tailcut", "run", str(model), "-o", str(out), *FLAGS, *more]


def environment(home: Path) -> dict[str, str]:
    # one thread: the number of threads decides the order of float sums; a lock of its own: tests may run side by side
    own = {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(home / "cache"), "TAILCUT_BENCH_LOCK": str(home / "lock")}
    return os.environ | own


def run(model: Path, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(model, out, *more),
        capture_output=True,
        text=True,
        env=environment(out.parent),
        timeout=300,
        check=False,
    )


def computed(out: Path) -> dict[str, bytes]:
    files = [path for name in COMPUTED for path in ((out / name).rglob("*") if (out / name).is_dir() else [out / name])]
    return {str(path.relative_to(out)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that went through without interruption."""
    out = tmp_path_factory.mktemp("run") / "out"
    began = time.monotonic()
    done = run(tiny_model("llama"), out)
    assert done.returncode == 0, done.stderr
    (out.parent / "seconds").write_text(str(time.monotonic() - began))
    return out


def test_the_whole_street_leaves_every_output(finished: Path) -> None:
    for name in (*COMPUTED, "result.json", "verdict.json", "report.md", "report.html"):
        assert (finished / name).exists(), name
    verdict = json.loads((finished / "verdict.json").read_text())
    assert verdict["outcome"] == "pass"
    manifest = json.loads((finished / "package" / "manifest.json").read_text())
    zeros = sum(layer["zeros"] for layer in manifest["layers"].values())
    weights = sum(int(np.prod(layer["shape"])) for layer in manifest["layers"].values())
    # Wanda removes floor(in * s) of every row: at most one weight a row below the plan, rows have 32 weights or more
    assert 0.6 - 1 / 32 <= zeros / weights <= 0.6


def test_rounded_packages_are_judged_as_packages(finished: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Other weights keep the compressed model, make both packages again and score the sparse one by its session."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    when = (out / "scores.json").stat().st_mtime_ns
    done = run(tiny_model("llama"), out, "--weights", "int4", "--head", "int8")
    assert done.returncode == 0, done.stderr
    assert (out / "scores.json").stat().st_mtime_ns == when
    for name in ("dense", "package"):
        details = json.loads((out / name / "manifest.json").read_text())["details"]
        assert (details["precision"], details["head_precision"]) == ("int4", "int8")
    before, after = (json.loads((where / "quality.json").read_text()) for where in (finished, out))
    assert before["dense_nll"] == after["dense_nll"]
    assert before["sparse_nll"] != after["sparse_nll"]
    assert (before["measured_with"], after["measured_with"]) == ("torch", "torch (dense), onnxruntime (sparse)")


def test_a_second_run_does_nothing_again(finished: Path, tiny_model: TinyModel) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    done = run(tiny_model("llama"), finished)
    assert done.returncode == 0, done.stderr
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed <= {"recipe.json"}


def test_a_new_limit_judges_again_without_measuring_again(
    finished: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    when = (out / "result.json").stat().st_mtime_ns
    done = run(tiny_model("llama"), out, "--min-speedup", "1.0001")
    # ONNX Runtime has no sparse kernel, so a speedup limit on it must not pass
    assert done.returncode == 1, done.stdout + done.stderr
    assert (out / "result.json").stat().st_mtime_ns == when


def test_a_policy_file_is_judged_on_the_packages_and_has_kl_measured(
    finished: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    out, policy = tmp_path / "out", tmp_path / "policy.yaml"
    shutil.copytree(finished, out)
    when = (out / "scores.json").stat().st_mtime_ns
    policy.write_text(
        "version: 1\nlimits: {max_kl: 100, verify_files: true, min_sparsity: 0.55, max_logit_gap: 0.01}\n"
    )
    done = run(tiny_model("llama"), out, "--policy", str(policy))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "scores.json").stat().st_mtime_ns == when
    checks = {check["name"]: check for check in json.loads((out / "verdict.json").read_text())["checks"]}
    assert checks["KL to dense on heldout.txt"]["value"] > 0
    assert "counted in the package" in checks["sparsity"]["sentence"]
    policy.write_text("version: 1\nlimits: {max_kl: 1.0e-9}\n")  # another file of the same name is judged again
    assert run(tiny_model("llama"), out, "--policy", str(policy)).returncode == 1
    policy.write_text("version: 1\nlimits: {min_task_recovery: 0.9, min_load_speedup: 1 at 4}\n")
    done = run(tiny_model("llama"), out, "--policy", str(policy))
    assert done.returncode == 2
    assert "measures no tasks and no load" in " ".join(done.stderr.split())


def test_a_bench_ends_when_the_gates_speedup_is_settled(finished: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    out, policy = tmp_path / "out", tmp_path / "policy.yaml"
    shutil.copytree(finished, out)
    policy.write_text("version: 1\nlimits: {min_speedup: 0.01, require_engagement: false}\n")
    done = run(tiny_model("llama"), out, "--policy", str(policy), "--bench-minutes", "1", "--min-blocks", "3")
    result = json.loads((out / "result.json").read_text())
    assert result["workload"]["stopping"] == {
        "precision": None, "at_least": 0.01, "minutes": 1.0, "min_blocks": 3, "max_blocks": 32,
    }  # fmt: skip
    (decode,) = (one for one in result["engines"][0]["procedures"] if one["phase"] == "decode")
    # dense or sparse: no package is a hundred times slower. A machine that others keep busy settles nothing
    assert done.returncode == (3 if decode["loud"] else 0), done.stdout + done.stderr
    assert decode["loud"] or "clear of 0.01" in decode["ended"]


def test_only_what_ends_a_bench_measures_it_again(tiny_model: TinyModel, tmp_path: Path) -> None:
    def bench(**settings: Any) -> Any:
        return stages_of(tiny_model("llama"), tmp_path, **settings)["bench"].settings

    assert "stopping" not in bench()  # run directories of earlier versions stay as they are
    assert bench(min_speedup=1.5) == bench(min_speedup=2.0) == bench()
    assert bench(min_speedup=1.5, bench_minutes=3.0) != bench(min_speedup=2.0, bench_minutes=3.0)
    assert bench(min_speedup=1.5, at_least=1.2) == bench(min_speedup=2.0, at_least=1.2)


def test_ctrl_c_says_how_to_go_on(tiny_model: TinyModel, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tiny_model("llama"), tmp_path / "out"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path),
        # a shell that starts the tests in the background leaves Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 no other threads here
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "recipe.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert "Traceback" not in errors


def test_an_absent_engine_is_not_measured_and_not_passed(tiny_model: TinyModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    home = environment(tmp_path) | {"TAILCUT_ENGINES": str(tmp_path / "none")}
    words = command(tiny_model("llama"), out, "--engines", "deepsparse", "--min-speedup", "1.1")
    done = subprocess.run(words, capture_output=True, text=True, env=home, timeout=300, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    engine = json.loads((out / "result.json").read_text())["engines"][0]
    assert engine["status"] == "not measured"
    assert "tailcut engines install deepsparse" in engine["reason"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--sparsity", "1.2"), "sparsity must be in [0, 1)"),
        (("--pattern", "24"), "is not N:M"),
        (("--allocator", "os.system"), "unknown allocator"),
        (("--engines", "abacus"), "unknown engine"),
        (("--context", "4"), "cannot hold"),
        (("--calibration", "/no/such/file.txt"), "cannot read the text"),
        (("--granularity", "atom"), "granularity"),
        (("--allocator", "er", "--tau", "0.1"), "the er allocator does not read tau"),
    ],
)
def test_bad_settings_are_one_sentence(
    flags: tuple[str, ...], sentence: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    done = run(tiny_model("llama"), tmp_path / "out", *flags)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "model").exists()


def test_a_missing_tokenizer_is_one_sentence(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), model)
    (model / "tokenizer.json").unlink()
    done = run(model, tmp_path / "out")
    assert done.returncode == 2
    assert "tokenizer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_file_and_flags_on_top(tiny_model: TinyModel, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {tiny_model('llama')}\nsparsity: 1.5\n")
    done = run(recipe, tmp_path / "out")  # the flag --sparsity 0.6 wins over the file
    assert done.returncode == 0, done.stderr
    recipe.write_text("model: x\ntrust_remote_code: true\n")
    done = run(recipe, tmp_path / "other")
    assert done.returncode == 2
    assert "trust_remote_code" in done.stderr


def stages_of(model: Path, out: Path, **settings: Any) -> dict[str, Stage]:
    recipe = Recipe(model=str(model), samples=4, seqlen=32, device="cpu", **settings)
    return {stage.name: stage for stage in plan(Run(recipe, out), "fingerprint")}


def test_an_allocator_gets_the_scores_it_reads(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stages = stages_of(tiny_model("llama"), tmp_path, allocator="owl", sparsity=0.6, seed=3)
    stages["measure"].work()
    stages["allocate"].work()
    said = json.loads((tmp_path / "scores.json").read_text())["measured"]
    assert said["metrics"] == "alpha_mid,alpha_peak,owl"
    assert (said["calibration_samples"], said["calibration_seqlen"], said["seed"]) == ("4", "32", "3")
    assert json.loads((tmp_path / "allocation.json").read_text())["provenance"]["allocator"] == "owl"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sparsity": 0.6}, {"pruner": "magnitude", "step": "0.02"}),
        ({"sparsity": 0.0, "bits": 3.5, "quantiser": "rtn"}, {"quantiser": "rtn", "bits": "3.5"}),
        ({"pattern": "4:8", "allow_dense": True}, {"group": "8", "pattern": "4:8"}),
    ],
)
def test_a_search_gets_the_model_and_keeps_its_journal(
    asked: dict[str, object],
    said: dict[str, str],
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    how = {"allocator": "auto", "evaluations": 20, "pruner": "magnitude"} | asked
    stages = stages_of(tiny_model("llama"), tmp_path, **how)
    stages["measure"].work()
    stages["allocate"].work()
    found = json.loads((tmp_path / "allocation.json").read_text())["provenance"]
    assert said | {"allocator": "auto", "evaluations": "20"} == {
        key: found[key] for key in (*said, "allocator", "evaluations")
    }
    assert len((tmp_path / "allocation.search.jsonl").read_text().splitlines()) > 20


@pytest.mark.parametrize(("setting", "value"), [("pruner", "ria"), ("evaluations", 30), ("seed", 1)])
def test_what_a_search_depends_on_searches_again(setting: str, value: object, tmp_path: Path) -> None:
    first, other = (
        stages_of(tmp_path, tmp_path, allocator="auto", **more)["allocate"].settings for more in ({}, {setting: value})
    )
    assert first != other
    arithmetic = stages_of(tmp_path, tmp_path, allocator="alpha")["allocate"].settings
    assert setting not in arithmetic


@pytest.mark.parametrize(("allocator", "again"), [("alpha", False), ("uniform", False), ("owl", True), ("als", True)])
def test_another_text_measures_again_only_where_it_is_read(allocator: str, again: bool, tmp_path: Path) -> None:
    first, other = (
        stages_of(tmp_path, tmp_path, allocator=allocator, seed=seed)["measure"].settings for seed in (0, 1)
    )
    assert (first != other) == again


def test_allocators_that_read_the_same_scores_share_their_measurement(tmp_path: Path) -> None:
    alpha, uniform, lamp = (
        stages_of(tmp_path, tmp_path, allocator=name)["measure"].settings for name in ("alpha", "uniform", "lamp")
    )
    assert alpha == uniform
    assert alpha != lamp


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_at_ten_random_moments_ends_in_the_same_bytes(
    finished: Path, tiny_model: TinyModel, tmp_path: Path
) -> None:
    seconds = float((finished.parent / "seconds").read_text())
    want, out = computed(finished), tmp_path / "out"
    rng = np.random.default_rng(20261122)
    killed = 0
    for moment in rng.uniform(0.05, 0.9, 10):
        process = subprocess.Popen(
            command(tiny_model("llama"), out), env=environment(tmp_path), start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(timeout=seconds * moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        if (out / "verdict.json").exists():  # it got through: start over, so that every kill hits work
            assert computed(out) == want
            shutil.rmtree(out)
    assert killed >= 5
    done = run(tiny_model("llama"), out)
    assert done.returncode == 0, done.stderr
    assert computed(out) == want
    leftovers = [
        path for path in (*out.rglob("*"), *out.parent.glob("out*")) if ".tmp-" in path.name or path.suffix == ".work"
    ]
    assert leftovers == []


def test_a_recovery_stands_between_cutting_and_export(finished: Path, tiny_model: TinyModel, tmp_path: Path) -> None:
    out, text = tmp_path / "out", tmp_path / "own.jsonl"
    shutil.copytree(finished, out)
    text.write_text("".join(json.dumps({"text": f"{n * 7919 % 1009} sheep of many farms"}) + "\n" for n in range(2000)))
    when = (out / "model" / "manifest.json").stat().st_mtime_ns
    words = ("--recover", "distill", "--recover-text", str(text), "--recover-budget", "2steps")
    done = run(tiny_model("llama"), out, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "model" / "manifest.json").stat().st_mtime_ns == when  # cutting was done before
    details = json.loads((out / "recovered" / "manifest.json").read_text())["details"]
    assert details["recovery"] == "distill"
    cut, recovered = (json.loads((place / "quality.json").read_text()) for place in (finished, out))
    assert cut["sparse_nll"] != recovered["sparse_nll"]  # what is judged is the recovered model
    assert "Recovery by distill" in (out / "report.html").read_text()
    assert "## Recovery" in (out / "report.md").read_text()


def test_only_another_text_recovers_again(tiny_model: TinyModel, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"

    def stages(content: str, **settings: Any) -> dict[str, Stage]:
        text.write_text(content)
        return stages_of(tiny_model("llama"), tmp_path, recover_text=(str(text),), **settings)

    first, again, other = stages("sheep"), stages("sheep"), stages("goats")
    assert first["recover"].settings == again["recover"].settings != other["recover"].settings
    assert first["export"].after == ("recover",)
    assert stages("sheep", recover_budget="1m")["recover"].settings != first["recover"].settings
    plain = stages_of(tiny_model("llama"), tmp_path)
    assert "recover" not in plain  # run directories of earlier versions stay as they are
    assert plain["export"].after == plain["quality"].after == ("compress",)


def test_units_go_before_weights_do(tiny_model: TinyModel, tmp_path: Path) -> None:
    """What is measured and cut is the smaller model; what it is compared with stays the whole one."""
    settings: dict[str, Any] = {"structured": 0.4, "importance": "wanda", "sparsity": 0.5, "allocator": "uniform"}
    source = tiny_model("llama", intermediate_size=256)
    stages = stages_of(source, tmp_path, **settings)
    first = ("structured", "measure", "allocate", "compress")
    assert tuple(stages)[:4] == first
    run_stages(tmp_path, [stages[name] for name in first], lambda name, skipped: None)
    whole, small = (read_manifest(tmp_path / name) for name in ("model", "structured"))
    assert {n: one.shape for n, one in whole.layers.items()} == {n: one.shape for n, one in small.layers.items()}
    assert whole.sparsity == pytest.approx(0.5, abs=0.02)
    assert small.details["importance"] == "wanda"
    assert "structured" not in stages_of(source, tmp_path)
    with pytest.raises(InputError, match="between 0 and 1"):
        stages_of(source, tmp_path, structured=40.0)
    with pytest.raises(InputError, match="unknown importance"):
        stages_of(source, tmp_path, importance="luck")
